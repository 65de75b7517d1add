"""Tell people how something ended. What goes wrong here is a warning, never a failure."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_UI_URL

from tasks.policy import keeps_secrets
from trainyard import notify, versions
from trainyard.approval import Question
from trainyard.recipe.notify import NotifySpec
from trainyard.release.job import Job
from trainyard.rollout import Rollback
from trainyard.run import Run

logger = logging.getLogger("trainyard.notify")

Given = ParamSpec("Given")


def _never_fails(tell: Callable[Given, None]) -> Callable[Given, None]:
    """No release, question or rollback fails for its message."""

    @wraps(tell)
    def told(*args: Given.args, **kwargs: Given.kwargs) -> None:
        try:
            tell(*args, **kwargs)
        except Exception as error:
            logger.warning("notify: %s: %s", type(error).__name__, error)

    return told


@_never_fails
def tell_release(job: Job, run: Run) -> None:
    """Call it while the release ends: the error that ends it is the one being handled."""
    if not job.recipe.notify.to:
        return
    links = links_of(run.summary.flow_run_id)
    links |= {"endpoint": run.summary.endpoint} if run.summary.endpoint else {}
    links |= {"report": Path(run.summary.report).absolute().as_uri()} if run.summary.report else {}
    send(job.recipe.notify, notify.of_release(run.summary, run.folder, sys.exception(), links))


@_never_fails
def tell_approval(job: Job, asked: Question) -> None:
    if not job.recipe.notify.to:
        return
    links = links_of(asked.flow_run_id)
    report = job.folder / "report.html"
    links |= {"report": report.absolute().as_uri()} if report.exists() else {}
    send(job.recipe.notify, notify.of_approval(asked, links))


@_never_fails
def tell_rollback(name: str, home: Path, done: Rollback, why: str) -> None:
    spec = versions.recipe_of(name, home).notify
    if spec.to:
        send(spec, notify.of_rollback(name, done, why))


@keeps_secrets
@task(name="notify", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=120)
def send(spec: NotifySpec, message: notify.Message) -> list[str]:
    """Send one message to every place; return what went wrong."""
    return notify.send(spec, message)


def links_of(flow_run_id: str | None) -> dict[str, str]:
    """The run's page in the Prefect UI."""
    url = PREFECT_UI_URL.value()
    return {"run": f"{url}/runs/flow-run/{flow_run_id}"} if url and flow_run_id else {}
