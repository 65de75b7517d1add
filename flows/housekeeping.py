"""Delete what nothing needs any more, and say when a disk fills up."""

from pathlib import Path

from prefect import flow

from tasks import housekeeping as tasks
from tasks.policy import keeps_secrets, quiet_own_errors
from trainyard.housekeeping import Swept

quiet_own_errors()


@keeps_secrets
@flow(name="housekeeping")
def housekeeping(days: float = 30, delete: bool = False) -> Swept:
    """Sweep runs, checkpoints, versions, caches, trackers' runs and Prefect's results.

    Args:
        days: Younger things stay, whatever needs them.
        delete: Delete what is found; without it, only say what would go, with sizes.
    """
    swept = tasks.sweep(Path(".trainyard"), days, delete)
    tasks.must_have_room(swept)
    return swept
