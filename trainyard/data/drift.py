"""How a data version differs from the one before: effect sizes, never p-values. Pure.

At a million rows every difference is significant, and 2 % of junk moves no distribution: so sizes
of effects with the noise of the sample beside them, and absolute changes of rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
BINS = 20


@dataclass(frozen=True)
class Shift:
    """One quantity in both versions."""

    name: str
    psi: float
    """Population stability index."""
    noise: float
    """What two samples of these sizes from one distribution show: (bins - 1)(1/n + 1/m)."""
    js: float
    """Jensen-Shannon distance, in [0, 1]."""
    moved: float
    """Wasserstein distance over the former standard deviation; 0 for categories."""
    before: float
    after: float
    """Medians; of categories, the share of the one that changed most."""
    what: str = ""


def shift_of_values(name: str, before: Values, after: Values) -> Shift:
    edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    p, q = (_binned(edges, values) for values in (before, after))
    spread = float(before.std()) or 1.0
    at = np.linspace(0, 1, 201)
    moved = float(np.abs(np.quantile(before, at) - np.quantile(after, at)).mean()) / spread
    medians = float(np.median(before)), float(np.median(after))
    return Shift(name, *_divergences(p, q), moved, *medians)


def _binned(edges: Values, values: Values) -> NDArray[np.int64]:
    """Counts below, on and between `edges`: whole numbers often lie on them."""
    place = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
    return np.bincount(place, minlength=2 * len(edges) + 1)


def shift_of_shares(name: str, before: Mapping[str, int], after: Mapping[str, int]) -> Shift:
    names = sorted({*before, *after})
    p = np.array([before.get(n, 0) for n in names])
    q = np.array([after.get(n, 0) for n in names])
    change = np.abs(q / max(q.sum(), 1) - p / max(p.sum(), 1))
    most = int(change.argmax())
    shares = float(p[most] / max(p.sum(), 1)), float(q[most] / max(q.sum(), 1))
    return Shift(name, *_divergences(p, q), 0.0, *shares, what=names[most])


def _divergences(p: NDArray[np.int64], q: NDArray[np.int64]) -> tuple[float, float, float]:
    """PSI, its noise, and Jensen-Shannon distance of two histograms; empty bins count as half."""
    n, m = max(int(p.sum()), 1), max(int(q.sum()), 1)
    p, q = p[p + q > 0], q[p + q > 0]
    a, b = np.maximum(p, 0.5) / n, np.maximum(q, 0.5) / m
    psi = float(((b - a) * np.log(b / a)).sum())
    a, b = a / a.sum(), b / b.sum()
    middle = (a + b) / 2
    js = float((a * np.log2(a / middle)).sum() + (b * np.log2(b / middle)).sum()) / 2
    return psi, (len(p) - 1) * (1 / n + 1 / m), float(np.sqrt(max(js, 0.0)))


@dataclass(frozen=True)
class Drift:
    shifts: tuple[Shift, ...]
    rates: dict[str, tuple[float, float]]
    """Code -> share of lines before and after."""
    added: int
    removed: int
    removed_share: float
    """Of the former version's rows."""
    digest: str
    """Of the former version."""

    @property
    def words(self) -> dict[str, Any]:
        return {
            "previous": self.digest,
            "added": self.added,
            "removed": self.removed,
            "psi": {shift.name: round(shift.psi, 4) for shift in self.shifts},
        }


def judge_drift(
    drift: Drift, *, warn_at: float, refuse_at: float, max_rate_change: float, max_removed: float
) -> tuple[list[str], list[str]]:
    """Sentences to refuse for, and to warn about."""
    refuse, warn = [], []
    for shift in drift.shifts:
        said = (
            f"{shift.name} moved: PSI {shift.psi:.3f} (noise {shift.noise:.3f}), "
            f"{shift.what + ' ' if shift.what else ''}{shift.before:.3g} → {shift.after:.3g}"
        )
        if shift.psi > max(refuse_at, 3 * shift.noise):
            refuse.append(said)
        elif shift.psi > max(warn_at, 3 * shift.noise):
            warn.append(said)
    for code, (before, after) in sorted(drift.rates.items()):
        if abs(after - before) > max_rate_change:
            warn.append(f"{code} went from {before:.2%} to {after:.2%} of lines")
    if drift.removed_share > max_removed:
        refuse.append(
            f"{drift.removed:,} rows of the former version are gone ({drift.removed_share:.1%}, "
            f"over {max_removed:.1%})"
        )
    return refuse, warn


def rows_changed(before: NDArray[np.uint64], after: NDArray[np.uint64]) -> tuple[int, int]:
    """Rows added and removed, by their ids."""
    shared = len(np.intersect1d(before, after))
    return len(np.unique(after)) - shared, len(np.unique(before)) - shared


def rate_of(counts: Mapping[str, int], code: str, lines: int) -> float:
    return counts.get(code, 0) / max(lines, 1)


def named(names: Sequence[str], values: NDArray[np.uint8]) -> dict[str, int]:
    """Occurrences by name of an array of indices into `names`."""
    counts = np.bincount(values, minlength=len(names))
    return {name: int(n) for name, n in zip(names, counts, strict=False) if n}
