"""Decide. Pure, so there is nothing to retry."""

from prefect import task
from prefect.artifacts import create_table_artifact

from trainyard.errors import Refused
from trainyard.gate import Decision, Verdict
from trainyard.release import gate
from trainyard.release.champion import Champion
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job


@task(name="gate")
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


def must_pass(decision: Decision) -> None:
    """Raises Refused, with every gate's reason and next step, unless the verdict is PASS."""
    if decision.verdict is not Verdict.PASS:
        steps = [f"{gate.id}: {gate.next}" for gate in decision.gates if gate.next]
        raise Refused("\n  ".join([f"{decision.verdict}: {decision.reason}", *steps]))
