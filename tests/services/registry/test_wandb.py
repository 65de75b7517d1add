"""The real W&B client against a server on this machine, which is not W&B (see wandb_state.py)."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb

from tests.services.registry.wandb_state import ORGANISATION_ENTITY, State
from trainyard import version
from trainyard.errors import InputError, Refused, Unavailable
from trainyard.process import free_port
from trainyard.recipe.register import WandbRegistry
from trainyard.registry import Metric, VersionRecord, open_registry, open_tracker
from trainyard.registry.wandb import (
    WandbRun,
    delete_tracked_run,
    sync_offline_runs,
    tracked_runs,
    tracker_id,
)

Release = Callable[..., VersionRecord]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


REGISTER = """
import sys
from pathlib import Path
from trainyard import version
from trainyard.recipe.register import WandbRegistry
from trainyard.registry import VersionRecord, open_registry

spec, home, me = WandbRegistry.model_validate_json(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
registry = open_registry(spec, home)
for weights in (me, "e"):
    adapter = home / f"adapter-{weights}"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "weights").write_text(weights)
    digest = version.digest_of(adapter)
    folder = version.assemble(home / "versions", "support", digest, adapter, {}).folder
    record = VersionRecord(name="support", digest=digest, url="file:///a", manifest_sha256="1" * 64,
                           run_id=f"run-{me}-{weights}", created="now", verdict="PASS")
    registry.register(record, folder)
    registry.promote("support", digest, who=me, why="a race")
"""


def test_releases_that_register_at_once_leave_one_version_each_and_one_champion(
    wandb_spec: WandbRegistry, home: Path, tmp_path: Path
) -> None:
    started = []
    for me in "ab":
        arguments = [wandb_spec.model_dump_json(), str(tmp_path / f"home-{me}"), me]
        command = [sys.executable, "-c", REGISTER, *arguments]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE))
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    registry = open_registry(wandb_spec, home)
    assert len(registry.versions("support")) == 3
    aliases = registry.aliases("support")
    assert aliases.keys() == {"production", "previous"}
    assert aliases["production"] in {record.digest for record in registry.versions("support")}


def test_ended_runs_are_listed_and_deleted(wandb_spec: WandbRegistry, home: Path) -> None:
    for run_id in ("support-1", "support-2"):
        WandbRun(wandb_spec, home, name="support", run_id=run_id).close()
    assert {run.run_id for run in tracked_runs(wandb_spec, home, "support")} == {
        "support-1",
        "support-2",
    }
    delete_tracked_run(wandb_spec, home, tracker_id("support-1"))
    assert [run.run_id for run in tracked_runs(wandb_spec, home, "support")] == ["support-2"]


@pytest.fixture(autouse=True)
def nothing_was_asked_that_the_server_does_not_know(wandb_server: State) -> Iterator[None]:
    yield
    assert wandb_server.unknown == []


def download(spec: WandbRegistry, alias: str, folder: Path) -> version.Manifest:
    """Fetch the version as any user of W&B would: by alias, from the registry."""
    api = wandb.Api(overrides={"base_url": spec.base_url, "entity": spec.entity})
    artifact = api.artifact(f"{ORGANISATION_ENTITY}/wandb-registry-model/support:{alias}")
    artifact.download(str(folder), skip_cache=True)
    return version.verify(folder)


def test_a_version_downloaded_by_alias_from_wandb_verifies(
    wandb_spec: WandbRegistry, home: Path, release: Release, tmp_path: Path
) -> None:
    registry = open_registry(wandb_spec, home)
    record = release(registry, "a")
    registry.promote("support", record.digest, who="ci", why="first version")
    assert download(wandb_spec, "production", tmp_path / "back").digest == record.digest


def test_a_blob_that_was_changed_on_the_server_is_found_by_verify(
    wandb_spec: WandbRegistry, wandb_server: State, home: Path, release: Release, tmp_path: Path
) -> None:
    registry = open_registry(wandb_spec, home)
    record = release(registry, "a")
    registry.promote("support", record.digest, who="ci", why="first version")
    hurt = next(path for path in wandb_server.blobs.values() if path.read_bytes() == b"a" * 100)
    hurt.write_bytes(b"b" * 100)
    with pytest.raises(Refused, match=r"adapter_model\.safetensors was changed"):
        download(wandb_spec, "production", tmp_path / "back")


def test_a_run_keeps_config_metrics_tables_and_the_report(
    wandb_spec: WandbRegistry, wandb_server: State, home: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text("<h1>report</h1>")
    tracker = open_tracker(wandb_spec, home, name="support", run_id="support-1")
    tracker.log_params({"train": {"lora": {"rank": 8}}})
    tracker.log_metrics([Metric("train/loss", 1 / (step + 1), step) for step in range(50)])
    tracker.log_metrics([Metric("eval/accuracy", 0.9, 10)])  # a step before the last one counts
    tracker.log_table("gates", ["gate", "verdict"], [["tickets", "PASS"]])
    tracker.log_file(page)
    tracker.close()
    rows = wandb_server.history("support-1")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 50
    assert {"eval/accuracy": 0.9, "trainyard/step": 10}.items() <= {**rows[50]}.items()
    assert any("gates" in row for row in rows)
    (run,) = wandb_server.runs.values()
    assert json.loads(run["config"])["train"]["value"] == {"lora": {"rank": 8}}
    assert run["complete"]
    assert any(
        path.read_bytes().endswith(b"<h1>report</h1>") for path in wandb_server.blobs.values()
    )


def test_a_run_made_while_the_server_is_away_is_sent_by_the_next_one(
    wandb_spec: WandbRegistry, wandb_server: State, home: Path
) -> None:
    away = wandb_spec.model_copy(
        update={
            "base_url": f"http://127.0.0.1:{free_port()}",
            "when_down": "offline",
            "connect_timeout_s": 2,
        }
    )
    offline = WandbRun(away, home, name="support", run_id="support-1")
    offline.log_metrics([Metric("train/loss", 1.0, step) for step in range(10)])
    assert sync_offline_runs(wandb_spec, home) == []  # somebody still writes it
    offline.close()
    assert wandb_server.history("support-1") == []
    online = WandbRun(wandb_spec, home, name="support", run_id="support-2")
    online.close()
    assert [row["train/loss"] for row in wandb_server.history("support-1")] == [1.0] * 10
    assert sync_offline_runs(wandb_spec, home) == []  # and never twice


def test_a_server_that_is_away_leaves_out_a_run_that_may_not_be_offline(
    wandb_spec: WandbRegistry, home: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = wandb_spec.model_copy(
            update={
                "base_url": f"http://127.0.0.1:{silent.getsockname()[1]}",
                "when_down": "skip",
                "connect_timeout_s": 2,
            }
        )
        with pytest.raises(Unavailable, match="did not answer"):
            open_tracker(away, home, name="support", run_id="support-1")


def test_a_registry_that_does_not_exist_is_named(
    wandb_spec: WandbRegistry, home: Path, release: Release
) -> None:
    other = wandb_spec.model_copy(update={"registry": "nowhere"})
    with pytest.raises(InputError, match="has no registry nowhere"):
        release(open_registry(other, home), "a")


def test_a_key_that_cannot_be_one_is_refused_before_the_server_is_asked(
    wandb_spec: WandbRegistry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(InputError, match="env:WANDB_API_KEY is shorter"):
        open_registry(wandb_spec, home)
