"""Decide, and wait for people where a gate asks them. Pure, so there is nothing to retry."""

from itertools import count

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from tasks.policy import keeps_secrets
from trainyard.errors import InputError, Refused, Waiting
from trainyard.gate import Decision, Verdict
from trainyard.release import gate, people
from trainyard.release.champion import Champion
from trainyard.release.evaluation import Evaluated
from trainyard.release.gate import next_look
from trainyard.release.job import Job
from trainyard.release.people import Sheet

__all__ = ["decide", "must_pass", "next_look", "wait_for_people"]

PATIENCE_S = 7 * 24 * 3600


class FilledForm(RunInput):
    """What a person gives when a release waits. Required: an empty resume approves nothing."""

    answers: str
    """What the form's Copy button gives, or the content of the file that it saves."""


@keeps_secrets
@task(name="gate", cache_policy=NO_CACHE)  # the answers of people come from outside
def decide(job: Job, evaluated: Evaluated, candidate: str, champion: Champion | None) -> Decision:
    decision = gate.run(job, evaluated, candidate, champion)
    columns = (
        "id",
        "verdict",
        "estimate",
        "low",
        "high",
        "threshold",
        "n",
        "method",
        "reason",
        "next",
    )
    rows = [{name: getattr(result, name) for name in columns} for result in decision.gates]
    create_table_artifact(
        key="gate", table=rows, description=f"{decision.verdict}: {decision.reason}"
    )
    return decision


def wait_for_people(
    job: Job, evaluated: Evaluated, champion: Champion | None, decision: Decision
) -> None:
    """Return when every form is filled. Not a task: only a flow can suspend its run.

    A deployed run is suspended and its process ends; what is entered at `Resume` is checked, and
    asked for again until it fits. Raises Waiting, with what to do, in a run without a deployment.
    """
    for sheet in people.sheets(job, evaluated, champion):
        if not sheet.is_filled:
            if deployment.id is None or flow_run.parent_flow_run_id is not None:
                steps = [one.next for one in decision.gates if one.id == sheet.form.gate.id]
                raise Waiting(f"{decision.reason}: {steps[0]}")
            _suspend(sheet)


def _suspend(sheet: Sheet) -> None:
    name = sheet.form.gate.id
    create_link_artifact(
        key="people", link=sheet.page.absolute().as_uri(), link_text=f"form of gate {name}"
    )
    problem = ""
    for attempt in count(1):
        told = (
            f"{problem}Open `{sheet.page.absolute()}`, answer everything, press Copy and paste it "
            "here. Whoever resumes is not asked for a name: protect the API."
        )
        # a key that was answered returns at once when the run starts over
        given = suspend_flow_run(
            wait_for_input=FilledForm.with_initial_data(description=told),
            timeout=PATIENCE_S,
            key=f"{name}-{sheet.form.digest[:12]}-{attempt}",
        )
        try:
            sheet.fill(given.answers)
            return
        except InputError as error:
            get_run_logger().warning("%s", error)
            problem = f"**{error}.** "


def must_pass(decision: Decision) -> None:
    """Raises Refused, with every gate's reason and next step, unless the verdict is PASS."""
    if decision.verdict is not Verdict.PASS:
        steps = [f"{gate.id}: {gate.next}" for gate in decision.gates if gate.next]
        raise Refused("\n  ".join([f"{decision.verdict}: {decision.reason}", *steps]))
