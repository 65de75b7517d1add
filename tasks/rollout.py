"""Give a version traffic, one task per step. A step is not retried: its state is on disk."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run

from tasks.approval import entered
from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from trainyard import versions
from trainyard.environment import Environment
from trainyard.errors import Waiting
from trainyard.recipe.deploy import DeploySpec
from trainyard.release import rollout
from trainyard.release.job import Job
from trainyard.release.version import Registered
from trainyard.rollout import Rollback, Rollout, StepRecord

WHO = "release"


PATIENCE_S = 7 * 24 * 3600

Pausing = Callable[[str], AbstractContextManager[None]]
"""What surrounds the time in which a person is asked the question given."""


def _unannounced(_question: str) -> AbstractContextManager[None]:
    return nullcontext()


def roll_out(
    job: Job, registered: Registered, where: Environment, pausing: Pausing = _unannounced
) -> rollout.Served:
    """Run every step to its end; Refused when the version was sent back to the champion."""
    controlled = rollout.begin(job, registered, where, by=str(flow_run.id or ""))
    take_steps(job.recipe.deploy, controlled, pausing)
    served = rollout.end(job, registered, controlled, WHO, where)
    create_table_artifact(
        key="rollout",
        table=[_row(done) for done in controlled.state.done],
        description=served.reason,
    )
    create_link_artifact(key="endpoint", link=served.endpoint, link_text=registered.served_name)
    return served


def take_steps(spec: DeploySpec, controlled: Rollout, pausing: Pausing = _unannounced) -> None:
    """Run each step as a task, and wait for a person's yes where the recipe wants one.

    A deployed run is suspended for it and its process ends; in a run without a deployment, Waiting
    is raised with the next command.
    """
    while (name := controlled.next_step) is not None:
        if (question := controlled.question) is not None:
            with pausing(question):
                _wait_for_yes(spec, controlled, question)
        step.with_options(task_run_name=f"rollout: {name}")(controlled)


def _wait_for_yes(spec: DeploySpec, controlled: Rollout, question: str) -> None:
    """Return when a person has answered. Not a task: only a flow can suspend its run."""
    controlled.park(str(flow_run.id or ""))
    if deployment.id is None or flow_run.parent_flow_run_id is not None:
        raise Waiting(f"{question}; {controlled.how_to_answer}, then repeat this")
    named, problem = spec.approval, ""
    for attempt in count(1):
        told = f"{problem}{question}. The champion serves everybody until you answer."
        key = f"{controlled.state.id}-{len(controlled.state.done)}-{attempt}"
        given = entered(told, key, PATIENCE_S)
        if named is None or given.who in named.by:
            controlled.answer(given.decision == "approve", f"{given.who}: {given.why}")
            return
        problem = f"**{given.who} may not answer: the recipe names {', '.join(named.by)}.** "


@keeps_secrets
@task(
    name="find version",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=3600,
    cache_policy=NO_CACHE,
)
def find(name: str, version: str, home: Path) -> tuple[Job, Registered]:
    return versions.to_serve(name, version, home)


@keeps_secrets
@task(name="rollback", cache_policy=NO_CACHE)
def roll_back(name: str, home: Path, why: str) -> Rollback:
    return versions.rollback(name, home, why=why, who="rollback flow")


@keeps_secrets
@task(name="rollout step", cache_policy=NO_CACHE, persist_result=False)
def step(controlled: Rollout) -> StepRecord:
    return controlled.step()


def _row(done: StepRecord) -> dict[str, object]:
    return {
        "step": done.step,
        "weight %": done.weight,
        "decision": done.decision,
        "canary": f"{done.canary.errors} errors of {done.canary.requests}",
        "champion": f"{done.champion.errors} errors of {done.champion.requests}",
        "e-value": round(done.e_value, 3),
        "why": done.reason,
    }
