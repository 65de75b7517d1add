"""Prometheus metrics of the pipeline, from what runs and rollouts left on disk.

`python -m trainyard.exporter [--home FOLDER] [--host H] [--port N] [--targets FILE]`. It reads the
disk at each scrape, so it may start, stop and move at any time, and needs no Prefect. With FILE it
also keeps, for Prometheus' file discovery, where gateways and engines of this machine listen.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from trainyard import files, process
from trainyard.environment import homes
from trainyard.monitor import record
from trainyard.monitor.finding import Health
from trainyard.monitor.record import Look
from trainyard.rollout.state import Store
from trainyard.run import Summary


class Pipeline(Collector):
    """The metrics of one home folder."""

    def __init__(self, home: Path, targets: Path | None = None) -> None:
        self._home = home
        self._targets = targets
        self._ended: dict[Path, tuple[Summary, dict[str, Any]]] = {}

    def collect(self) -> Iterator[Metric]:
        runs = list(self._runs())
        yield from _releases([summary for summary, _ in runs])
        yield from _stages([summary for summary, _ in runs])
        yield from _spent(runs)
        yield self._champions()
        yield self._waiting()
        yield from _monitored(list(self._looks()))
        if self._targets is not None:
            files.write_json(self._targets, self._listening())

    def _listening(self) -> list[dict[str, Any]]:
        """Gateways and engines that run as processes here, as file discovery wants them."""
        found = []
        for job, name, field in (
            ("gateway", "gateway", "admin_url"),
            ("engine", "blue", "url"),
            ("engine", "green", "url"),
        ):
            for path in sorted((self._home / "serving").glob(f"*/{name}.json")):
                address = str(files.read_json(path)[field]).removeprefix("http://")
                labels = {"job": job, "model": path.parent.name}
                found.append({"targets": [address], "labels": labels})
        return found

    def _runs(self) -> Iterator[tuple[Summary, dict[str, Any]]]:
        """Every run with its cost; one that has ended is read once."""
        for path in sorted((self._home / "runs").glob("*/summary.json")):
            if path in self._ended:
                yield self._ended[path]
                continue
            try:
                summary = Summary.model_validate(files.read_json(path))
                entry = path.with_name("cost.json")
                cost = files.read_json(entry) if entry.exists() else None
            except (OSError, ValueError, ValidationError):
                continue  # being written, or of a version that is gone
            if summary.status in ("done", "failed"):
                self._ended[path] = (summary, cost or {})
            yield summary, cost or {}

    def _champions(self) -> Metric:
        found = GaugeMetricFamily(
            "trainyard_champion_info", "Version on record as champion", labels=["model", "version"]
        )
        for folder in sorted((self._home / "serving").glob("*")):
            deployment = Store(folder).deployment()
            if deployment is not None:
                found.add_metric([folder.name, deployment.champion.version.digest], 1)
        return found

    def _waiting(self) -> Metric:
        found = GaugeMetricFamily(
            "trainyard_rollout_waiting_since_timestamp_seconds",
            "When a rollout asked a person and began to wait",
            labels=["model", "environment"],
        )
        for place, home in homes(self._home).items():
            for folder in sorted((home / "serving").glob("*")):
                state = Store(folder).state()
                if state is not None and state.phase == "waiting":
                    asked = (folder / "rollout.json").stat().st_mtime
                    found.add_metric([folder.name, place], asked)
        return found

    def _looks(self) -> Iterator[tuple[str, Look]]:
        """Environment and newest look of each model that is watched."""
        for place, home in homes(self._home).items():
            for folder in sorted((home / "monitor").glob("*")):
                look = record.last(folder)
                if look is not None:
                    yield place, look


def _monitored(looks: list[tuple[str, Look]]) -> Iterator[Metric]:
    """What the newest look at each model found; a finding is in one of three states."""
    who = ["model", "environment"]
    prefix = "trainyard_monitor"
    at = GaugeMetricFamily(f"{prefix}_look_timestamp_seconds", "Newest look", labels=who)
    state = GaugeMetricFamily(
        f"{prefix}_finding", "1 for the state that a check is in", labels=[*who, "check", "health"]
    )
    p = GaugeMetricFamily(
        f"{prefix}_drift_p_value", "Of the newest questions", labels=[*who, "window"]
    )
    mmd2 = GaugeMetricFamily(f"{prefix}_drift_mmd2", "Of the same test", labels=[*who, "window"])
    e = GaugeMetricFamily(
        f"{prefix}_e_value", "Evidence that answers became worse", labels=[*who, "check"]
    )
    for place, look in looks:
        mine = [look.model, place]
        at.add_metric(mine, look.at)
        for finding in look.findings:
            for health in Health:
                state.add_metric([*mine, finding.check, health], finding.health is health)
            for window, test in finding.evidence.get("windows", {}).items():
                p.add_metric([*mine, window], test["p"])
                mmd2.add_metric([*mine, window], test["mmd2"])
            if "e_value" in finding.evidence:
                e.add_metric([*mine, finding.check], finding.evidence["e_value"])
    yield from (at, state, p, mmd2, e)


def _releases(runs: list[Summary]) -> Iterator[Metric]:
    many = CounterMetricFamily(
        "trainyard_releases", "Releases", labels=["recipe", "status", "verdict"]
    )
    counted = Counter((run.recipe, run.status, run.verdict or "none") for run in runs)
    for labels, count in sorted(counted.items()):
        many.add_metric(labels, count)
    yield many
    gone = GaugeMetricFamily(
        "trainyard_releases_interrupted", "Releases whose process is gone", labels=["recipe"]
    )
    dead = Counter({run.recipe: 0 for run in runs})
    dead.update(
        run.recipe for run in runs if run.status == "running" and not process.is_alive(run.process)
    )
    for recipe, count in sorted(dead.items()):
        gone.add_metric([recipe], count)
    yield gone
    last = GaugeMetricFamily(
        "trainyard_last_release_timestamp_seconds", "Start of the newest", labels=["recipe"]
    )
    newest: dict[str, float] = {}
    for run in runs:
        began = datetime.fromisoformat(run.started).timestamp()
        newest[run.recipe] = max(began, newest.get(run.recipe, 0.0))
    for recipe, at in sorted(newest.items()):
        last.add_metric([recipe], at)
    yield last


def _stages(runs: list[Summary]) -> Iterator[Metric]:
    took: dict[tuple[str, str], list[float]] = {}
    skipped: Counter[tuple[str, str]] = Counter()
    for run in runs:
        for stage in run.stages:
            if stage.skipped:
                skipped[run.recipe, stage.name] += 1
            elif stage.seconds is not None:
                took.setdefault((run.recipe, stage.name), []).append(stage.seconds)
    labels = ["recipe", "stage"]
    seconds = SummaryMetricFamily("trainyard_stage_seconds", "Stages that ran", labels=labels)
    for key, values in sorted(took.items()):
        seconds.add_metric(key, count_value=len(values), sum_value=sum(values))
    yield seconds
    yield _waits(runs)
    many = CounterMetricFamily("trainyard_stages_skipped", "Stages skipped", labels=labels)
    for key, count in sorted(skipped.items()):
        many.add_metric(key, count)
    yield many


def _waits(runs: list[Summary]) -> Metric:
    """Only stages that were sent somewhere have waited for it."""
    waited: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for stage in run.stages:
            if stage.queue_s is not None:
                waited.setdefault((run.recipe, stage.name), []).append(stage.queue_s)
    found = SummaryMetricFamily(
        "trainyard_queue_wait_seconds",
        "Waits of stages for a worker or a GPU",
        labels=["recipe", "stage"],
    )
    for key, values in sorted(waited.items()):
        found.add_metric(key, count_value=len(values), sum_value=sum(values))
    return found


def _spent(runs: list[tuple[Summary, dict[str, Any]]]) -> Iterator[Metric]:
    hours = CounterMetricFamily("trainyard_gpu_hours", "GPU-hours of releases", labels=["recipe"])
    money = CounterMetricFamily("trainyard_cost", "What they cost", labels=["recipe"])
    tokens = CounterMetricFamily("trainyard_judge_tokens", "Judges' tokens", labels=["recipe"])
    planned = GaugeMetricFamily(
        "trainyard_estimate_ratio", "Planned / real seconds of the last training", labels=["recipe"]
    )
    for metric, key in ((hours, "gpu_hours"), (money, "amount"), (tokens, "judge_tokens")):
        spent: dict[str, float] = {}
        for run, cost in runs:
            spent[run.recipe] = spent.get(run.recipe, 0.0) + (cost.get(key) or 0)
        for recipe, value in sorted(spent.items()):
            metric.add_metric([recipe], value)
        yield metric
    ratios = {
        run.recipe: cost["estimated_train_s"] / cost["train_s"]
        for run, cost in runs
        if cost.get("estimated_train_s") and cost.get("train_s")
    }
    for recipe, ratio in sorted(ratios.items()):
        planned.add_metric([recipe], ratio)
    yield planned


def main() -> int:
    parser = argparse.ArgumentParser(prog="trainyard.exporter", description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".trainyard"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9108)
    parser.add_argument("--targets", type=Path)
    given = parser.parse_args()
    registry = CollectorRegistry()
    registry.register(Pipeline(given.home, given.targets))
    try:
        start_http_server(given.port, given.host, registry)
    except OSError as error:
        print(f"cannot listen on {given.host}:{given.port}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"ready http://{given.host}:{given.port}/metrics", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
