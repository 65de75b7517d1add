"""Estimates of memory beside what was measured: the next estimate of the same kind is corrected."""

import json
import math
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from trainyard.recipe.resources import ResourcesSpec
from trainyard.recipe.train import TrainSpec

FILE = "estimates.jsonl"
LATEST = 20
"""Pairs of one kind that count."""
ENOUGH = 3
"""Pairs that must agree before an estimate is lowered; one is enough to raise it."""
LEAST, MOST = 0.8, 1.5
"""Bounds of the correction: what lies outside is another fault than the formula's."""


class Correction(NamedTuple):
    ratio: float
    pairs: int


def kind_of(spec: TrainSpec, resources: ResourcesSpec, backend: str) -> str:
    """What two trainings share when the formula is equally wrong about both."""
    card = "cpu"
    if resources.gpus:
        card = resources.gpu or f"{resources.memory_gib or 0:g}-gib"
    parts = [card, backend, spec.method, spec.objective, spec.activation_checkpointing]
    return "/".join([*parts, "packed"] if spec.packing else parts)


def keep(home: Path, kind: str, estimated_gib: float, measured_gib: float) -> None:
    """Append a pair. A line is written at once, so several releases may do so together."""
    line = {
        "kind": kind,
        "estimated_gib": estimated_gib,
        "measured_gib": measured_gib,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (home / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def correction(home: Path, kind: str) -> Correction:
    """Return the factor for the next estimate of this kind: the median of measured / estimated."""
    ratios = [m / e for k, e, m in _pairs(home / FILE) if k == kind][-LATEST:]
    if not ratios:
        return Correction(1.0, 0)
    median = statistics.median(ratios)
    if median < 1 and len(ratios) < ENOUGH:
        return Correction(1.0, len(ratios))
    return Correction(min(max(median, LEAST), MOST), len(ratios))


def _pairs(file: Path) -> list[tuple[str, float, float]]:
    """Read whole lines of sound numbers; a damaged line is left out, for it only advises."""
    found = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in lines:
        try:
            pair = json.loads(line)
            estimated, measured = float(pair["estimated_gib"]), float(pair["measured_gib"])
            if 0 < estimated < math.inf and 0 < measured < math.inf:
                found.append((str(pair["kind"]), estimated, measured))
        except (ValueError, KeyError, TypeError):
            continue
    return found
