"""A version moves on to the next environment, as it is: what the command line does."""

from pathlib import Path

from trainyard import versions
from trainyard.environment import read_environment
from trainyard.release import rollout
from trainyard.release.rollout import Served


def promote(version: str, home: Path, to: str) -> Served:
    """Give `NAME@REF` traffic in the environment `to`, step by step.

    Raises Refused for a version that was altered, did not pass or was not approved, Waiting with
    the next command while an approval is missing.
    """
    where = read_environment(to)
    name, ref = versions.named(version, "staging")
    job, registered = versions.to_serve(name, ref, home)
    controlled = rollout.begin(job, registered, where)
    while controlled.next_step is not None:
        controlled.step()
    return rollout.end(job, registered, controlled, "promotion", where)
