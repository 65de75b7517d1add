"""Give a registered version traffic, step by step, without training it again."""

from pathlib import Path

from prefect import flow

from tasks import approval
from tasks import rollout as tasks
from tasks.policy import keeps_secrets, quiet_own_errors
from trainyard.environment import PRODUCTION
from trainyard.release.rollout import Served

quiet_own_errors()


@keeps_secrets
@flow(name="rollout", flow_run_name="{name} {version}")
def rollout(name: str, version: str = "candidate") -> Served:
    """Roll out one registered version of a model; back to the champion when it is worse.

    Args:
        name: Name of the model, as in its recipe.
        version: An alias (candidate, previous) or the beginning of a digest.
    """
    job, registered = tasks.find(name, version, Path(".trainyard"))
    asked = approval.question(job, registered.digest, PRODUCTION)
    if asked is not None:
        approval.wait(job, asked)
    return tasks.roll_out(job, registered, PRODUCTION)
