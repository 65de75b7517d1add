"""A stage's progress: to whoever listens at once, to the Prefect UI and its logs now and then."""

import logging
import time
from collections.abc import Callable
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from trainyard.release.job import Progress

logger = logging.getLogger("trainyard.progress")

listeners: list[Callable[[str, float, str], None]] = []
"""Called with stage, share in [0, 1] and words; a console adds itself here."""

UPDATE_S = 2.0
LOG_S = 30.0
AWAY_S = 30.0
"""Between two attempts to reach a server that is away."""


def shown(stage: str) -> Progress:
    """Return a callback for one stage; it belongs to the task run that asks for it."""
    made = create_progress_artifact(progress=0.0, key=f"{stage}-progress", description=stage)
    artifact = cast(UUID, made)  # a coroutine only inside an event loop
    updated = logged = time.monotonic()

    def show(share: float, words: str) -> None:
        nonlocal updated, logged
        now = time.monotonic()
        for listener in listeners:
            listener(stage, share, words)
        if share >= 1 or now - updated > UPDATE_S:
            updated = now
            try:
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                    update_progress_artifact(
                        artifact, progress=min(100.0, share * 100), description=words
                    )
            except Exception as error:  # a server that is away neither ends nor holds up a stage
                updated += AWAY_S
                logger.debug("progress not shown: %s", error)
        if now - logged > LOG_S:
            logged = now
            logger.info("%s %.0f %%: %s", stage, share * 100, words)

    return show
