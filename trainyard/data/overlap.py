"""What training rows share with evaluation samples, told per sample and per row."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from trainyard.data.leakage import COVERED, EvalSets
from trainyard.data.merge import SIDES, Merged


@dataclass(frozen=True)
class Touched:
    """One evaluation sample that rows share grams with."""

    sample: str
    """`file:line`."""
    rows: int
    leaks: int
    """Rows that repeat half of it or more."""
    share: float
    """Of its grams, the largest that one row has."""


def write_overlaps(merged: Merged, file: Path) -> list[Touched]:
    """Write a line per pair of row and sample, sorted by sample; returns the samples, worst first.

    Nothing is written without evaluation sets.
    """
    if merged.job.eval_sets is None:
        return []
    names = EvalSets.load(merged.job.eval_sets).names
    found = [np.load(place / "overlaps.npy") for place in merged.places]
    rows = np.concatenate([part["row"] + merged.firsts[i] for i, part in enumerate(found)])
    pairs = np.concatenate(found)
    order = np.lexsort((rows, pairs["sample"]))
    tables = [merged.job.chunk(number).table.name for number in range(len(merged.places))]
    touched: dict[int, list[float]] = {}
    with file.open("wb") as out:
        for row, pair in zip(rows[order].tolist(), pairs[order], strict=True):
            sample, share = int(pair["sample"]), float(pair["share"])
            touched.setdefault(sample, []).append(share)
            chunk = bisect_right(merged.firsts, row) - 1
            entry = {
                "sample": names[sample],
                "file": tables[chunk],
                "line": int(merged.facts["line"][row]),
                "share": round(share, 4),
                "code": "leak" if share >= COVERED else "eval_overlap",
                "side": SIDES[merged.side[row]],
            }
            out.write(orjson.dumps(entry) + b"\n")
    made = [
        Touched(names[s], len(all_), sum(x >= COVERED for x in all_), max(all_))
        for s, all_ in touched.items()
    ]
    return sorted(made, key=lambda t: (-t.leaks, -t.rows, -t.share, t.sample))
