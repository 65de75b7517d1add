"""Schedules are the server's work, and depend on the database library that it finds."""

import time
from datetime import timedelta

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import IntervalSchedule


@flow(name="on time")
def on_time() -> None: ...


def test_a_schedule_makes_runs(prefect_server: None) -> None:
    schedule = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)))
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(on_time)
        made = client.create_deployment(flow_id, name="hourly", schedules=[schedule])
        end = time.monotonic() + 240
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[made]))
        while not client.read_flow_runs(deployment_filter=ours):
            assert time.monotonic() < end, "the server made no run of the schedule"
            time.sleep(0.5)
        client.delete_deployment(made)
