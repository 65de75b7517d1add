"""Give a version traffic, one task per step. A step is not retried: its state is on disk."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.policy import RETRY_DELAYS_S, worth_retrying
from trainyard import versions
from trainyard.environment import Environment
from trainyard.release import rollout
from trainyard.release.job import Job
from trainyard.release.version import Registered
from trainyard.rollout import Rollback, Rollout, StepRecord

WHO = "release"


def roll_out(job: Job, registered: Registered, where: Environment) -> rollout.Served:
    """Run every step to its end; Refused when the version was sent back to the champion."""
    controlled = rollout.begin(job, registered, where)
    while (name := controlled.next_step) is not None:
        step.with_options(task_run_name=f"rollout: {name}")(controlled)
    served = rollout.end(job, registered, controlled, WHO, where)
    create_table_artifact(
        key="rollout",
        table=[_row(done) for done in controlled.state.done],
        description=served.reason,
    )
    create_link_artifact(key="endpoint", link=served.endpoint, link_text=registered.served_name)
    return served


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


@task(name="rollback", cache_policy=NO_CACHE)
def roll_back(name: str, home: Path, why: str) -> Rollback:
    return versions.rollback(name, home, why=why, who="rollback flow")


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
