"""Wait for a named person's yes. Not tasks: only a flow can suspend its run."""

from datetime import UTC, datetime
from itertools import count
from typing import Annotated, Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from pydantic import Field

from tasks import notify
from trainyard import approval
from trainyard.approval import Answer, Question
from trainyard.environment import Environment
from trainyard.errors import InputError, Refused
from trainyard.release.job import Job


class Approval(RunInput):
    """What a person gives when a release waits. No defaults: an empty resume approves nothing."""

    decision: Literal["approve", "reject"]

    who: Annotated[str, Field(description="Your name, as the recipe has it.")]
    why: Annotated[str, Field(description="Goes into the lineage of the version.")]


def question(job: Job, digest: str, where: Environment) -> Question | None:
    """Return what has to be approved, told to whom the recipe says; None when nothing has to be."""
    asked_by = str(flow_run.id) if flow_run.id else None
    now = _now()
    asked = approval.ask(job, digest, where.serves, asked_by, now)
    if asked is not None and asked.is_asked_at(now):
        notify.tell_approval(job, asked)
    return asked


def wait(job: Job, asked: Question) -> Answer:
    """Return the answer once it is `approve`.

    A deployed run is suspended and its process ends; what is entered at `Resume` is checked, and
    asked for again until somebody who may answer does. Raises Waiting, with the next command, in a
    run without a deployment, and Refused after a `reject` or when the question expired.
    """
    if asked.answer is None and deployment.id is not None:
        asked = _suspend(job, asked)
    return approval.must_be_given(job, asked, _now())


def _suspend(job: Job, asked: Question) -> Question:
    problem = ""
    for attempt in count(1):
        left = datetime.fromisoformat(asked.expires) - _now()
        if left.total_seconds() <= 0:
            return asked
        told = (
            f"{problem}{asked.words}.\n\nReport: `{job.folder / 'report.html'}`\n\n"
            "A name is not proved here: protect the API."
        )
        given = entered(told, f"{asked.key}-{attempt}", max(1, int(left.total_seconds())))
        said = Answer(
            choice=given.decision,
            who=given.who,
            why=given.why,
            time=_now().isoformat(timespec="seconds"),
        )
        try:
            return approval.answer(job.home, asked, said)
        except (Refused, InputError) as error:
            get_run_logger().warning("%s", error)
            problem = f"**{error}.** "
    raise AssertionError


def entered(told: str, key: str, timeout_s: int) -> Approval:
    """Suspend the run until somebody has filled in the form below `told`.

    A key that was answered returns its answer at once when the run starts over.
    """
    return suspend_flow_run(
        wait_for_input=Approval.with_initial_data(description=told), timeout=timeout_s, key=key
    )


def _now() -> datetime:
    return datetime.now(UTC)
