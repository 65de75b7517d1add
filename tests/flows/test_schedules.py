"""Schedules are the server's work, and depend on the database library that it finds."""

import os
import subprocess
import sys
from pathlib import Path

# the test harness's server has no scheduler: this is what the scheduler calls, on a real database
PROGRAM = """
import asyncio, datetime
from prefect.server import models, schemas
from prefect.server.database import provide_database_interface
from prefect.server.schemas.schedules import IntervalSchedule

async def main():
    db = provide_database_interface()
    await db.create_db()
    async with db.session_context(begin_transaction=True) as session:
        flow = await models.flows.create_flow(session, schemas.core.Flow(name="f"))
        made = schemas.core.Deployment(name="d", flow_id=flow.id)
        made = await models.deployments.create_deployment(session, made)
        hourly = IntervalSchedule(interval=datetime.timedelta(hours=1))
        schedule = schemas.actions.DeploymentScheduleCreate(schedule=hourly, active=True)
        await models.deployments.create_deployment_schedules(session, made.id, [schedule])
        print("runs", len(await models.deployments.schedule_runs(session, made.id)))

asyncio.run(main())
"""


def test_a_schedule_makes_runs(tmp_path: Path) -> None:
    database = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    env = os.environ | {"PREFECT_HOME": str(tmp_path)}
    env |= {"PREFECT_API_DATABASE_CONNECTION_URL": database}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split("runs ")[-1]) > 0
