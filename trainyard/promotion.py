"""A version moves on to the next environment, as it is: what the command line does."""

from datetime import UTC, datetime
from pathlib import Path

from trainyard import approval, notify, versions
from trainyard.environment import Environment, read_environment
from trainyard.release import rollout
from trainyard.release.job import Job
from trainyard.release.rollout import Served
from trainyard.release.version import Registered


def promote(version: str, home: Path, to: str) -> Served:
    """Give `NAME@REF` traffic in the environment `to`, step by step.

    Raises Refused for a version that was altered, did not pass or was not approved, Waiting with
    the next command while an approval is missing.
    """
    where = read_environment(to)
    name, ref = versions.named(version, "staging")
    job, registered = versions.to_serve(name, ref, home)
    _ask(job, registered, where)
    controlled = rollout.begin(job, registered, where)
    while controlled.next_step is not None:
        controlled.step()
    return rollout.end(job, registered, controlled, "promotion", where)


def _ask(job: Job, registered: Registered, where: Environment) -> None:
    """Tell who is to approve it, once; `rollout.begin` stops while nobody has."""
    now = datetime.now(UTC)
    asked = approval.ask(job, registered.digest, where.serves, None, now)
    if asked is not None and asked.is_asked_at(now):
        notify.send(job.recipe.notify, notify.of_approval(asked, {}))
