"""The monitoring assets against the real programs: promtool, and a Prometheus that scrapes us."""

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.monitoring import dashboards
from tests.services.rollout.stubs import REPLAY, version
from tests.services.rollout.test_local import SPEC, local_target
from tests.unit.test_exporter import drifted
from trainyard import process, rollout
from trainyard.monitor import record
from trainyard.run import Run

FOLDER = Path("deployments/monitoring")
RULES = FOLDER / "rules"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed",
)


@needs_prometheus
def test_each_alarm_rings_for_what_it_is_for() -> None:
    for command in (
        ["check", "rules", "serving.yml", "pipeline.yml"],
        ["test", "rules", "tests.yml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=RULES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_the_config_of_compose_is_one_that_prometheus_takes(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus", str(FOLDER.resolve()))
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_are_what_their_source_says() -> None:
    for name in dashboards.DASHBOARDS:
        assert (dashboards.FOLDER / f"{name}.json").read_text() == dashboards.text(name)


def test_every_alarm_has_a_severity_and_says_what_it_saw() -> None:
    for file in ("serving.yml", "pipeline.yml"):
        for group in yaml.safe_load((RULES / file).read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
                    assert rule["annotations"]["summary"], rule["alert"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus with our rules that scrapes a gateway under a rollout, and the exporter."""
    place = tmp_path_factory.mktemp("monitoring")
    home = place / "home"
    target = local_target(home)
    stop = threading.Event()
    children: list[subprocess.Popen[bytes]] = []
    port, exporter = process.free_port(), process.free_port()
    try:
        assert rollout.run(target, version(place, "aaaaaaaa"), spec=SPEC).promoted
        run = Run.start(home, "m", "recipes/m.yaml")
        run.save()
        looks = record.folder_of(home, "m")
        looks.mkdir(parents=True)
        record.keep(looks, drifted(time.time()))
        children.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "trainyard.exporter", "--home", str(home)),
                    *("--port", str(exporter), "--targets", str(place / "serving.json")),
                ],
                stdout=subprocess.DEVNULL,
            )
        )
        found = str(place / "serving.json")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [
                str((RULES / name).resolve()) for name in ("serving.yml", "pipeline.yml")
            ],
            "scrape_configs": [
                {
                    "job_name": "serving",
                    "file_sd_configs": [{"files": [found], "refresh_interval": "1s"}],
                },
                {
                    "job_name": "pipeline",
                    "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}],
                },
            ],
        }
        (place / "prometheus.yml").write_text(yaml.safe_dump(config))
        children.append(
            subprocess.Popen(
                [
                    *("prometheus", "--config.file", str(place / "prometheus.yml")),
                    *("--storage.tsdb.path", str(place / "tsdb")),
                    *("--web.listen-address", f"127.0.0.1:{port}"),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        user = threading.Thread(target=_use, args=(target.endpoint(), stop))
        user.start()
        rollout.run(target, version(place, "bbbbbbbb", fail=0.5), spec=SPEC, replay=REPLAY)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            _await_scrapes(client)
            yield client
        stop.set()
        user.join()
    finally:
        stop.set()
        for child in children:
            child.terminate()
            child.wait()
        target.down()


def _use(endpoint: str, stop: threading.Event) -> None:
    with httpx.Client(base_url=endpoint, trust_env=False) as client:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
        while not stop.wait(0.1):
            body["stream"] = not body.get("stream")
            client.post("/v1/chat/completions", json=body)


def _ask(client: httpx.Client, expression: str) -> dict[str, Any]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    found: dict[str, Any] = answer["data"]
    return found


def _await_scrapes(client: httpx.Client) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if len(_ask(client, "count_over_time(up[1m]) > 6")["result"]) >= 3:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError("Prometheus did not scrape gateway, engine and exporter")


# what a gateway without such an event, or an engine that is not there, has no series for
SILENT = {
    "Flagged answers",
    "Engine's queue",
    "GPU-hours",
    "Mean time of a stage",
    "Stages skipped",
}


@needs_prometheus
@pytest.mark.parametrize(
    ("panel", "expression"),
    [
        pytest.param(panel.title, expression, id=f"{name}: {panel.title}: {legend}")
        for name, panels in dashboards.DASHBOARDS.items()
        for panel in panels
        for legend, expression in panel.queries.items()
    ],
)
def test_every_expression_of_a_dashboard_finds_something(
    prometheus: httpx.Client, panel: str, expression: str
) -> None:
    found = _ask(prometheus, expression.replace("$__rate_interval", "30s"))["result"]
    assert found or panel in SILENT, expression


@needs_prometheus
def test_every_metric_of_rules_and_dashboards_is_one_that_we_export(
    prometheus: httpx.Client,
) -> None:
    text = "".join((RULES / name).read_text() for name in ("serving.yml", "pipeline.yml"))
    text += "".join(dashboards.text(name) for name in dashboards.DASHBOARDS)
    named = set(re.findall(r"\b((?:gateway|trainyard)_[a-z_]+)\b", text))
    names = prometheus.get("/api/v1/label/__name__/values").json()["data"]
    metadata = set(prometheus.get("/api/v1/metadata").json()["data"])
    known = (
        set(names) | metadata | {f"{name}_{end}" for name in metadata for end in ("sum", "count")}
    )
    known |= {f"{name}_bucket" for name in metadata} | {f"{name}_total" for name in metadata}
    assert named - known == set()


@needs_prometheus
def test_the_live_rules_evaluate(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 18
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []


def test_log_configs_name_files_that_are_written() -> None:
    collector = yaml.safe_load((FOLDER / "otel-collector.yaml").read_text())
    promtail = yaml.safe_load((FOLDER / "promtail.yml").read_text())
    paths = {job["static_configs"][0]["labels"]["__path__"] for job in promtail["scrape_configs"]}
    included = {
        path for receiver in collector["receivers"].values() for path in receiver["include"]
    }
    assert paths == included
    pipeline = collector["service"]["pipelines"]["logs"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == set(collector[kind])
