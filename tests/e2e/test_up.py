"""A server, work pools and workers on this machine, and releases that send work to them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from deployments import pools, postgres
from flows.evaluation import evaluation
from flows.release import release
from flows.training import training
from tests.e2e import containers
from tests.e2e.conftest import SMALL, Clone
from trainyard import process
from trainyard.process import free_port

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def up(clone: Clone) -> str:
    port = free_port()
    clone.env |= {"PREFECT_SERVER_API_PORT": str(port)}
    code, output = clone.run("deployments.up")
    assert code == 0, output
    return f"http://127.0.0.1:{port}/api"


def prefect(clone: Clone, api: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=clone.folder,
        env=clone.env | {"PREFECT_API_URL": api},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def runs(api: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.post(f"{api}/flow_runs/filter", json={}).json()
    return found


def start(clone: Clone, api: str, deployment: str, **parameters: str) -> None:
    given = [part for pair in parameters.items() for part in ("--param", "=".join(pair))]
    done = prefect(
        clone, api, "deployment", "run", deployment, *given, "--watch", "--watch-timeout", "800"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_release_runs_from_its_deployment_and_sends_its_training_to_the_gpu_pool(
    clone: Clone, up: str
) -> None:
    start(clone, up, "release/quickstart", recipe=SMALL)
    assert (clone.summary()["status"], clone.summary()["verdict"]) == ("done", "PASS")
    used = {run["work_pool_name"] for run in runs(up)}
    has_postgres = bool(postgres.find_binaries()) and postgres.can_reach(clone.folder)
    expected = {"cpu", "gpu"} if has_postgres else {"cpu"}
    assert expected <= used


@pytest.fixture
def docker_pool(clone: Clone, up: str, tmp_path: Path) -> Iterator[Path]:
    """Deployments of the three flows in a pool of containers; yields their `.trainyard`."""
    containers.build(containers.engine())
    where = "training: training/docker\nevaluation: evaluation/docker\n"
    (clone.folder / "deployments/environments/docker.yaml").write_text(where)
    directory = {"directory": str(clone.folder)}
    with temporary_settings({PREFECT_API_URL: up}), get_client(sync_client=True) as client:
        pools.apply([containers.pool("containers", clone.folder, tmp_path)])
        for flow, entrypoint in (
            (release, "flows.release.release"),
            (training, "flows.training.training"),
            (evaluation, "flows.evaluation.evaluation"),
        ):
            client.create_deployment(
                flow_id=client.create_flow(flow),
                name="docker",
                entrypoint=entrypoint,
                parameter_openapi_schema=parameter_schema(flow).model_dump(),
                work_pool_name="containers",
                pull_steps=[{"prefect.deployments.steps.set_working_directory": directory}],
            )
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "containers"]
    env = clone.env | {"PREFECT_API_URL": up, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=clone.folder, env=env, stdout=log, stderr=log)
    yield tmp_path
    process.stop(process.record(worker.pid))
    worker.wait()


def test_containers_release_what_processes_release(
    clone: Clone, up: str, docker_pool: Path
) -> None:
    by_processes = clone.summary() if clone.summaries() else clone.released()
    try:
        start(clone, up, "release/docker", recipe=SMALL, environment="docker")
    except AssertionError:
        print((docker_pool / "worker.log").read_text()[-4000:])
        raise
    (file,) = docker_pool.glob("runs/*/summary.json")
    by_containers = json.loads(file.read_text())
    assert not any(stage["skipped"] for stage in by_containers["stages"])
    # the version is named by the digest of its weights
    for key in ("verdict", "version"):
        assert by_containers[key] == by_processes[key]
    # which questions meet in one batch is a matter of time, and moves the ninth digit
    for suite, metrics in by_processes["scores"].items():
        for metric, arms in metrics.items():
            assert by_containers["scores"][suite][metric] == pytest.approx(arms, rel=1e-6)
    ours = [run for run in runs(up) if run["work_pool_name"] == "containers"]
    assert len(ours) == 3
    assert all(len(run["infrastructure_pid"].rpartition(":")[2]) == 64 for run in ours)


def test_up_twice_changes_nothing_and_down_ends_everything(clone: Clone, up: str) -> None:
    again = clone.run("deployments.up")
    assert again[0] == 0
    assert "already up" in again[1]
    started = json.loads((clone.folder / ".trainyard/up.json").read_text())
    has_postgres = bool(postgres.find_binaries()) and postgres.can_reach(clone.folder)
    assert len(started) == (4 if has_postgres else 2)
    code, output = clone.run("deployments.down")
    assert code == 0, output
    assert not clone.processes()
