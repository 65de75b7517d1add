"""Put the former champion back."""

from pathlib import Path

from prefect import flow

from tasks import notify
from tasks import rollout as tasks
from tasks.policy import keeps_secrets, quiet_own_errors
from trainyard.rollout import Rollback

quiet_own_errors()


@keeps_secrets
@flow(name="rollback", flow_run_name="{name}")
def rollback(name: str, why: str) -> Rollback:
    """Give the former champion of a model all traffic again, then the alias.

    Args:
        name: Name of the model, as in its recipe.
        why: Goes into the history of the alias.
    """
    home = Path(".trainyard")
    done = tasks.roll_back(name, home, why)
    notify.tell_rollback(name, home, done, why)
    return done
