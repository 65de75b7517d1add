"""What a server forgets by itself, set up as `compose.yaml` does, and what its disk gets back."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import httpx
import pytest
import yaml

from deployments.throwaway import a_database, a_server
from tests.services.webhook.conftest import eventually

VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM"
LOGS = 2000
COUNTS = "select (select count(*) from flow_run), (select count(*) from log), \
(select count(*) from artifact)"


class Database:
    def __init__(self, url: str, api: str) -> None:
        self.url, self.api = url.replace("+asyncpg", ""), api

    def ask(self, *statements: str) -> tuple[Any, ...]:
        """Return the last one's only row."""

        async def all_of_them() -> tuple[Any, ...]:
            connection = await asyncpg.connect(self.url)
            try:
                for statement in statements:
                    rows = await connection.fetch(statement)
                return tuple(rows[0]) if rows else ()
            finally:
                await connection.close()

        return asyncio.run(all_of_them())

    def size(self) -> int:
        (found,) = self.ask("select pg_total_relation_size('log')")
        return int(found)

    def a_run(self, days: int) -> None:
        """One that ended so long ago, with logs and an artifact."""
        with httpx.Client(base_url=f"{self.api}/", timeout=120) as client:
            flow = client.post("flows/", json={"name": "ended"}).json()["id"]
            state = {"type": "COMPLETED"}
            run = client.post("flow_runs/", json={"flow_id": flow, "state": state}).json()["id"]
            line = {"name": "x", "level": 20, "timestamp": "2026-01-01T00:00:00Z",
                    "flow_run_id": run}  # fmt: skip
            lines = [line | {"message": uuid.uuid4().hex * 30} for _ in range(LOGS)]
            client.post("logs/", json=lines).raise_for_status()
            artifact = {"key": f"of-{days}", "flow_run_id": run, "data": "x"}
            client.post("artifacts/", json=artifact).raise_for_status()
        ended = f"now() - interval '{days} days'"
        self.ask(f"update flow_run set start_time = {ended}, end_time = {ended} where id = '{run}'")


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    compose = yaml.safe_load(Path("deployments/compose.yaml").read_text())
    set_up = compose["services"]["server"]["environment"]
    monkeypatch.setenv(f"{VACUUM}_ENABLED", set_up[f"{VACUUM}_ENABLED"])
    monkeypatch.setenv(f"{VACUUM}_LOOP_SECONDS", "2")  # an hour by default
    with TemporaryDirectory(prefix="trainyard-", dir="/tmp") as root, a_database(Path(root)) as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed")
        with a_server(Path(root), url) as api:
            yield Database(url, api)


def test_runs_that_ended_ninety_days_ago_go_and_their_room_is_used_again(
    database: Database,
) -> None:
    database.ask("alter table log set (autovacuum_enabled = off)")  # it is done by hand below
    for days in (91, 89, 0):
        database.a_run(days)
    eventually(lambda: database.ask(COUNTS) == (2, 2 * LOGS, 2))
    full = database.size()
    assert full > 3 * LOGS * 900
    database.ask("vacuum log")
    assert database.size() >= full  # other rows lie behind: nothing goes back to the disk
    database.a_run(1)
    assert database.size() < 1.05 * full  # but it is written on again
    assert database.ask(COUNTS) == (3, 3 * LOGS, 3)
    database.ask("delete from log", "vacuum full log")
    assert database.size() < 0.05 * full  # only this gives the disk back
