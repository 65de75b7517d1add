"""Releases, a worker and GPUs that are only named, on a server of their own that goes away."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.states import Cancelling

from bench import slots
from deployments.throwaway import a_database, running, wait_for
from tasks import dispatch
from tests.flows.parents import parent
from trainyard.process import free_port

OUTAGE_S = float(os.environ.get("TRAINYARD_OUTAGE_S", "15"))
"""Set it to 300 to see five minutes."""
LOAD = slots.Load(releases=4, gpus=2, recipes=2, kills=1, seconds=1.0)

pytestmark = pytest.mark.timeout(600 + OUTAGE_S)


class World:
    """A server that can be taken away and come back with what it knew."""

    def __init__(self, root: Path, database: str | None) -> None:
        self.root, self.database, self.port = root, database, free_port()
        self.log = root / "gpus.log"
        self.log.touch()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @contextmanager
    def server(self) -> Iterator[None]:
        env = os.environ | {"PREFECT_HOME": str(self.root / "prefect"), "DO_NOT_TRACK": "1"}
        if self.database:
            env["PREFECT_API_DATABASE_CONNECTION_URL"] = self.database
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)]
        with running(command, env, self.root / "server.log"):
            wait_for(f"{self.api}/health")
            yield


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with TemporaryDirectory(prefix="trainyard-") as root, a_database(Path(root)) as database:
        made = World(Path(root), database)
        quick = {PREFECT_API_URL: made.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        with temporary_settings(quick):
            yield made


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.2)


def test_all_finish_alone_on_their_gpu_through_kill_9_an_outage_and_a_new_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENT_S", 25.0)  # a job that the old worker took with it
    monkeypatch.setattr(dispatch, "LOOK_S", 5.0)
    finished: list[int] = []
    with ExitStack() as worker, ExitStack() as server:
        server.enter_context(world.server())
        slots.deploy(LOAD.gpus)
        worker.enter_context(slots.a_worker(world.root, LOAD.gpus))
        with slots.a_killer(world.log, LOAD) as killed:
            context = threading.Thread(target=lambda: finished.append(_release_all(world)))
            context.start()
            until(lambda: bool(killed))
            server.close()
            time.sleep(OUTAGE_S)
            server.enter_context(world.server())
            worker.close()
            worker.enter_context(slots.a_worker(world.root, LOAD.gpus))
            context.join()
        found = slots.read(world.log, slots.recipes_of(LOAD))
        assert finished == [LOAD.releases]
        assert (found["lost"], found["double_booked"]) == (0, 0)
        _cancelled_with_its_children(world)


def _release_all(world: World) -> int:
    with temporary_settings({PREFECT_API_URL: world.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return slots.release_all(world.log, LOAD)


def _cancelled_with_its_children(world: World) -> None:
    with get_client(sync_client=True) as client:
        directory = {"directory": str(Path.cwd())}
        made = client.create_deployment(
            flow_id=client.create_flow(parent),
            name="parent",
            entrypoint="tests.flows.parents.parent",
            work_pool_name=slots.POOL,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": directory}],
        )
        started = client.create_flow_run_from_deployment(made, parameters={"log": str(world.log)})
        until(lambda: "child-0" in world.log.read_text())
        (work,) = [pid for run, pid in slots.at_work(world.log) if run == "child-0"]
        program = psutil.Process(work).children()[0]
        client.set_flow_run_state(started.id, Cancelling(), force=True)
        begin = time.monotonic()
        until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE)
        print(f"the child's program was gone {time.monotonic() - begin:.1f} s after the cancel")

        def states(which: UUID) -> StateType | None:
            state = client.read_flow_run(which).state
            return state and state.type

        until(lambda: states(started.id) == StateType.CANCELLED)
