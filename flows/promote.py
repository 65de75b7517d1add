"""Move a registered version on to another environment: the same bytes, never made again."""

from pathlib import Path

from prefect import flow

from tasks import approval
from tasks import rollout as tasks
from tasks.policy import keeps_secrets, quiet_own_errors
from trainyard.environment import read_environment
from trainyard.release.rollout import Served

quiet_own_errors()


@keeps_secrets
@flow(name="promote", flow_run_name="{name} {version} to {to}")
def promote(name: str, version: str = "staging", to: str = "production") -> Served:
    """Give a version that passed its gates traffic in another environment.

    Args:
        name: Name of the model, as in its recipe.
        version: An alias (staging, candidate, dev) or the beginning of a digest.
        to: An environment: a file of deployments/environments.
    """
    where = read_environment(to)
    job, registered = tasks.find(name, version, Path(".trainyard"))
    asked = approval.question(job, registered.digest, where)
    if asked is not None:
        approval.wait(job, asked)
    return tasks.roll_out(job, registered, where)
