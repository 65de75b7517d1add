"""A server, work pools and workers on this machine, and a release that sends work to them."""

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

from deployments import postgres
from tests.e2e.conftest import SMALL, Clone
from trainyard.process import free_port


@pytest.fixture
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


def test_a_release_runs_from_its_deployment_and_sends_its_training_to_the_gpu_pool(
    clone: Clone, up: str
) -> None:
    done = prefect(
        clone, up, "deployment", "run", "release/quickstart",
        "--param", f"recipe={SMALL}", "--watch", "--watch-timeout", "240",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone.summary()["status"], clone.summary()["verdict"]) == ("done", "PASS")
    pools = {run["work_pool_name"] for run in runs(up)}
    has_postgres = bool(postgres.find_binaries()) and postgres.can_reach(clone.folder)
    expected = {"cpu", "gpu"} if has_postgres else {"cpu"}
    assert expected <= pools

    again = clone.run("deployments.up")
    assert again[0] == 0
    assert "already up" in again[1]

    started = json.loads((clone.folder / ".trainyard/up.json").read_text())
    assert len(started) == (4 if has_postgres else 2)
    code, output = clone.run("deployments.down")
    assert code == 0, output
    assert not clone.processes()
