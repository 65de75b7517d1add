import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.registry.wandb_loopback import serve
from tests.services.registry.wandb_state import TEAM, State
from trainyard import registry, version
from trainyard.process import free_port
from trainyard.recipe.register import KeySigning, MlflowRegistry, WandbRegistry
from trainyard.registry import Registry, VersionRecord


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it none."""
    home = tmp_path_factory.mktemp("migrated")
    registry.open_registry(MlflowRegistry(), home)
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, migrated: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def mlflow_server(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A team's MLflow: the real server, on a database of its own."""
    pytest.importorskip("flask", reason="mlflow-skinny serves only beside Flask")
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(migrated, folder / "mlflow.db")
    port = free_port()
    program = str(Path(sys.executable).with_name("mlflow"))
    command = [program, "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, process_group=0
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(f"{url}/health"):
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A W&B of our own, with a registry `model`, and a client that keeps to this test's folder."""
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name}"))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with serve(tmp_path / "wandb-server") as state:
        state.create_registry("model")
        yield state


@pytest.fixture
def wandb_spec(wandb_server: State) -> WandbRegistry:
    return WandbRegistry(
        kind="wandb",
        entity=TEAM,
        project="support",
        base_url=wandb_server.url,
        connect_timeout_s=10,
    )


Release = Callable[..., VersionRecord]


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """Make a version out of `weights` and register it."""

    def make(registry: Registry, weights: str, **facts: str) -> VersionRecord:
        adapter = tmp_path / f"adapter-{weights}"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_model.safetensors").write_text(weights * 100)
        digest = version.digest_of(adapter)
        made = version.assemble(tmp_path / "versions", "support", digest, adapter, {})
        record = VersionRecord(
            name="support",
            digest=digest,
            url=f"file:///archive/{made.key}",
            manifest_sha256="1" * 64,
            run_id=facts.get("run_id", f"run-{weights}"),
            commit=facts.get("commit", f"{weights:0<40}"),
            created="2026-11-20T10:00:00+00:00",
            verdict="PASS",
            scores={"tickets/exact_match": 0.94},
        )
        registry.register(record, made.folder)
        return record

    return make


def key_pair(folder: Path, name: str) -> KeySigning:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    curve = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(curve, check=True, capture_output=True)
    half = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(half, check=True, capture_output=True)
    return KeySigning(private_key=f"file:{private}", public_key=str(public))
