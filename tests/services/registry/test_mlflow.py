"""MLflow's own traps: the first open, several processes, a server that is away."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import nginx
from tests.services.registry.conftest import Release
from trainyard.errors import InputError, Unavailable
from trainyard.process import free_port
from trainyard.recipe.register import MlflowRegistry
from trainyard.registry import Metric, open_registry, open_tracker
from trainyard.registry.mlflow import MlflowRun

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

REGISTER = """
import sys
from pathlib import Path
from trainyard.recipe.register import MlflowRegistry
from trainyard.registry import VersionRecord, open_registry

home, me = Path(sys.argv[1]), sys.argv[2]
found = open_registry(MlflowRegistry(), home)
for digest in [me * 64, "e" * 64]:
    record = VersionRecord(name="support", digest=digest, url="file:///a", manifest_sha256="1" * 64,
                           run_id=f"run-{me}-{digest[0]}", created="now", verdict="PASS")
    found.register(record, home)
    found.promote("support", digest, who=me, why="a race")
"""


def test_processes_that_open_a_new_database_at_once_all_succeed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    started = [
        subprocess.Popen([sys.executable, "-c", REGISTER, str(home), me], stderr=subprocess.PIPE)
        for me in "abc"
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    registry = open_registry(MlflowRegistry(), home)
    assert sorted(v.digest[0] for v in registry.versions("support")) == ["a", "b", "c", "e"]
    assert registry.aliases("support").keys() == {"production", "previous"}
    assert len(registry.history("support")) >= 6


def test_a_run_keeps_params_metrics_tables_and_files(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<h1>report</h1>")
    run = MlflowRun(MlflowRegistry(), home, name="support", run_id="support-1")
    run.log_params({"lora": {"rank": 8}, "long": "x" * 10_000})
    run.log_metrics([Metric("train/loss", 1 / (step + 1), step) for step in range(1500)])
    run.log_table("gates", ["gate", "verdict"], [["tickets", "PASS"]])
    run.log_file(page)
    run.close()
    found = run.client.get_run(run.run)
    assert found.info.status == "FINISHED"
    assert found.data.params["lora.rank"] == "8"
    assert len(run.client.get_metric_history(run.run, "train/loss")) == 1500
    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(home.absolute())
    assert (artifacts / "report.html").read_text() == "<h1>report</h1>"
    assert json.loads((artifacts / "tables" / "gates.json").read_text())["data"] == [
        ["tickets", "PASS"]
    ]


def test_a_tracker_that_fails_midway_is_logged_and_ends_nothing(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(MlflowRegistry(), home, name="support", run_id="support-1")
    (home / "mlflow.db").write_bytes(b"no database any more" * 100)
    tracker.log_metrics([Metric("loss", 1.0, 0)])
    tracker.close()
    assert "the tracker failed at log_metrics, the release goes on" in caplog.text


def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    away = MlflowRegistry(uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="did not answer"):
        open_registry(away, tmp_path).versions("support")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises((InputError, Unavailable), match=r"mlflow\.db"):
        open_registry(MlflowRegistry(), tmp_path)


def test_a_team_server_behind_nginx_needs_the_ca_and_the_password(
    mlflow_server: str,
    home: Path,
    release: Release,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "nginx").mkdir()
    with nginx.in_front(tmp_path / "nginx", prefect=mlflow_server, mlflow=mlflow_server) as front:
        spec = MlflowRegistry(uri=front.mlflow)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", nginx.USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", nginx.PASSWORD)
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            open_registry(spec, home).versions("support")
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(front.ca))
        registry = open_registry(spec, home)
        record = release(registry, "a")
        registry.promote("support", record.digest, who="ci", why="first version")
        assert registry.aliases("support")["production"] == record.digest
        for wrong in ("another", ""):
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", wrong)
            with pytest.raises(InputError, match="does not accept"):
                open_registry(spec, home).versions("support")
