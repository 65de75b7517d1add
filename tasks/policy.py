"""What is retried, and what a log shows of an error. Said once."""

import logging
from typing import Any, TypeVar, cast

from prefect import Flow, Task
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import State, TaskRun

from trainyard import secrets
from trainyard.errors import InputError, TrainyardError, Unavailable

RETRY_DELAYS_S = [5.0, 30.0]

Runs = TypeVar("Runs", bound="Task[..., Any] | Flow[..., Any]")


def keeps_secrets(runs: Runs) -> Runs:
    """Mask the errors of a task or flow before Prefect writes them into states and results."""
    runs.fn = secrets.kept_from_errors(runs.fn)
    return runs


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry only what time can heal: a service that did not answer."""
    return isinstance(state.result(raise_on_failure=False), Unavailable)


class _OwnErrorsSpeakForThemselves(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, TrainyardError):
            record.exc_info = record.exc_text = None
        return True


def _block(name: str) -> str:
    try:
        found = Secret.load(name)
    except ValueError:
        raise InputError(f"block:{name}: Prefect has no Secret block of that name") from None
    return str(cast(Secret[Any], found).get())


def quiet_own_errors() -> None:
    """Log an error that we raised on purpose as one sentence, and no secret at all."""
    secrets.mask_logs()
    secrets.sources["block"] = _block
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(found, _OwnErrorsSpeakForThemselves) for found in logger.filters):
            logger.addFilter(_OwnErrorsSpeakForThemselves())
