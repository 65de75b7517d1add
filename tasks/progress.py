"""A stage's progress, shown on the console at once and in the Prefect UI every few seconds."""

import logging
import time
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from trainyard.release.job import Progress

logger = logging.getLogger("trainyard.progress")

EVERY_S = 2.0


def shown(stage: str) -> Progress:
    """Return a callback for one stage; it belongs to the task run that asks for it."""
    made = create_progress_artifact(progress=0.0, key=f"{stage}-progress", description=stage)
    artifact = cast(UUID, made)  # a coroutine only inside an event loop
    last = 0.0

    def show(share: float, words: str) -> None:
        nonlocal last
        logger.info("%s: %s", stage, words, extra={"share": share, "stage": stage})
        if share >= 1 or time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            update_progress_artifact(artifact, progress=min(100.0, share * 100), description=words)

    return show
