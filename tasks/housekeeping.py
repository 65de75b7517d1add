"""Sweep, and raise the alarm."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from trainyard import housekeeping
from trainyard.errors import Refused
from trainyard.housekeeping import Swept


@keeps_secrets
@task(
    name="sweep",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=6 * 3600,
    cache_policy=NO_CACHE,
)
def sweep(home: Path, days: float, delete: bool) -> Swept:
    swept = housekeeping.sweep(home, days=days, delete=delete)
    create_table_artifact(
        key="sweep",
        table=[item.model_dump(mode="json") for item in swept.items],
        description=swept.as_text().splitlines()[0],
    )
    return swept


@keeps_secrets
@task(name="quota alarm", cache_policy=NO_CACHE)
def must_have_room(swept: Swept) -> None:
    """Raises Refused when a disk is nearly full: the failed run is the alarm."""
    if swept.alarm:
        raise Refused(swept.alarm)
