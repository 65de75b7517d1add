"""Scores by slice: where the candidate is good, and where it is not."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from trainyard.evaluation.intervals import wilson
from trainyard.evaluation.scores import read_scores

FEWEST = 2


def table(scores: Path) -> list[dict[str, Any]]:
    """One row per suite, metric and slice: n, the candidate's mean and the base's.

    `low` and `high` are Wilson's 90 % interval, each end of which holds at 95 %, for scores in
    [0, 1] without clusters; for others they are None.
    """
    if not scores.exists():
        return []
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    clustered: set[tuple[str, str, str]] = set()
    for score in read_scores(scores):
        for name in score.slice:
            key = (score.suite, score.metric, name)
            if score.value is not None:
                values[key][score.arm].append(score.value)
            if score.cluster is not None:
                clustered.add(key)
    rows = []
    for key, arms in sorted(values.items()):
        mine = arms.get("candidate", [])
        if len(mine) < FEWEST:
            continue
        share = all(0 <= value <= 1 for value in mine) and key not in clustered
        low, high = wilson(sum(mine), len(mine), confidence=0.9) if share else (None, None)
        suite, metric, name = key
        rows.append({
            "suite": suite, "metric": metric, "slice": name, "n": len(mine),
            "candidate": sum(mine) / len(mine), "low": low, "high": high,
            "base": _mean(arms.get("base")), "champion": _mean(arms.get("champion")),
        })  # fmt: skip
    return rows


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
