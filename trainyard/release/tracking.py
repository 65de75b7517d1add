"""The run in the tracker: what it was given, its curve, its scores, its report."""

import json
import logging
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.registry import Metric, open_tracker
from trainyard.release.job import Job
from trainyard.run import Summary

logger = logging.getLogger(__name__)

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_s")


def log(job: Job, summary: Summary) -> None:
    """Log a run that ended, however it ended. A tracker that fails never changes the outcome."""
    spec, name = job.recipe.register.registry, job.recipe.name
    try:
        tracker = open_tracker(spec, job.home, name=name, run_id=job.run_id)
    except TrainyardError as error:
        logger.warning("the run is not in the tracker: %s", error)
        return
    tracker.log_params({"recipe": job.recipe.model_dump(mode="json")})
    tracker.log_metrics([*curve(job.folder / "train" / "metrics.jsonl"), *scores(summary)])
    for found in ("report.html", "gate.json", "lineage.json", "summary.json"):
        if (job.folder / found).exists():
            tracker.log_file(job.folder / found)
    tracker.close(failed=summary.status == "failed")


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
