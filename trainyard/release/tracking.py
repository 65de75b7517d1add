"""The run in every tracker: what it was given, its curve, its scores, its tables, plots and report.

A tracker that fails never changes what a release comes to.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainyard import files, secrets
from trainyard.recipe.register import RegistrySpec, WandbRegistry
from trainyard.registry import Metric, Tracker, open_tracker
from trainyard.release.job import Job
from trainyard.report import examples, loss_points
from trainyard.report.plots import forest_plot, line_chart
from trainyard.run import Summary

logger = logging.getLogger(__name__)

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_s")
KEPT = ("report.html", "gate.json", "lineage.json", "summary.json", "plan.json", "rollout.json")
GATE_COLUMNS = ("id", "verdict", "estimate", "low", "high", "threshold", "n", "method", "reason")


def trackers(job: Job) -> list[RegistrySpec]:
    spec = job.recipe.register
    return [spec.registry, *([spec.mirror] if spec.mirror else [])]


def run_ids(job: Job) -> dict[str, str]:
    """Return tracker -> its id of this run, for the lineage; without those that do not answer."""
    found: dict[str, str] = {}
    for spec in trackers(job):
        if isinstance(spec, WandbRegistry):
            # the client chooses it, so that an unreachable W&B gives the same id later
            from trainyard.registry.wandb import tracker_id  # noqa: PLC0415  (only with W&B)

            found[spec.kind] = tracker_id(job.run_id)
        elif (tracker := _opened(spec, job)) is not None:
            found[spec.kind] = tracker.run
    return found


def log(job: Job, summary: Summary) -> None:
    """Log a run that ended, however it ended, in every tracker of the recipe."""
    for spec in trackers(job):
        tracker = _opened(spec, job)
        if tracker is None:
            continue
        tracker.log_params({"recipe": job.recipe.model_dump(mode="json")})
        tracker.log_metrics([*curve(job.folder / "train" / "metrics.jsonl"), *scores(summary)])
        for name, columns, rows in tables(job.folder):
            tracker.log_table(name, columns, rows)
        for name in (*plots(job.folder), *KEPT):
            if (job.folder / name).exists():
                tracker.log_file(job.folder / name)
        tracker.close(failed=summary.failed_stage is not None)


def _opened(spec: RegistrySpec, job: Job) -> Tracker | None:
    try:
        return open_tracker(spec, job.home, name=job.recipe.name, run_id=job.run_id)
    except Exception as error:  # the promise: a tracker never loses a release
        logger.warning("the run is not in %s: %s", spec.kind, secrets.mask(str(error)))
        return None


def tables(folder: Path) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    """Yield name, columns and rows of every table that the run's folder has."""
    gate = folder / "gate.json"
    if gate.exists():
        rows = [[found.get(c) for c in GATE_COLUMNS] for found in files.read_json(gate)["gates"]]
        yield "gates", GATE_COLUMNS, rows
    shown = examples(folder / "evaluation" / "answers.jsonl")
    if shown:
        arms = sorted({arm for sample in shown for arm in sample["arms"]})
        answers = [
            [_plain(s["prompt"]), _plain(s.get("reference")), *(s["arms"].get(a) for a in arms)]
            for s in shown
        ]
        yield "answers", ("prompt", "reference", *arms), answers


def plots(folder: Path) -> list[str]:
    """Draw the loss curve and the gates into the run's folder, and return the files' names."""
    drawn = {}
    curve = loss_points(folder / "train" / "metrics.jsonl")
    if len(curve) > 1:
        drawn["loss.svg"] = line_chart(curve, "optimiser step", "loss")
    if (folder / "gate.json").exists():
        drawn["gates.svg"] = forest_plot(files.read_json(folder / "gate.json")["gates"])
    for name, image in drawn.items():
        files.write_text(folder / name, image)
    return list(drawn)


def _plain(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def curve(metrics: Path) -> list[Metric]:
    if not metrics.exists():
        return []
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [
        Metric(f"train/{name}", float(entry[name]), int(entry["step"]))
        for entry in entries
        for name in CURVES
        if entry.get(name) is not None
    ]


def scores(summary: Summary) -> list[Metric]:
    return [
        Metric(f"{suite}/{metric}/{arm}", value, 0)
        for suite, metrics in summary.scores.items()
        for metric, arms in metrics.items()
        for arm, value in arms.items()
    ]
