"""The scores a gate reads, checked: what cannot be trusted is named and never passes."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainyard.evaluation.scores import Score
from trainyard.files import digest_json
from trainyard.recipe.gates import GateSpec

Floats = NDArray[np.float64]

READS = {
    "harmful_rate": "harmful",
    "over_refusal": "refused",
    "bias_rate": "biased",
    "capability_drop": "capability",
    "perplexity_ratio": "perplexity",
    "human_issue_rate": "human_issue",
    "human_win_rate": "human_win",
    "rouge1_f": "rouge1",
    "rouge2_f": "rouge2",
    "rougeL_f": "rougeL",
    "rougeLsum_f": "rougeLsum",
}
LOWER_IS_BETTER = frozenset(
    {
        "harmful",
        "refused",
        "biased",
        "human_issue",
        "perplexity",
        "bits_per_byte",
        "latency_ms",
        "completion_tokens",
    }
)

LARGEST = 1e100
"""No score is larger; the square of a larger one is no number."""
_SHARES = (
    "exact_match", "accuracy", "contains", "regex", "token_f1", "macro_f1", "micro_f1", "rouge1",
    "rouge2", "rougeL", "rougeLsum", "json_match", "json_fields", "constraints", "capability",
    "stopped_by_eos", "harmful", "refused", "biased", "human_issue", "human_win",
)  # fmt: skip
RANGES = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    # sacrebleu gives 100.00000000000004 for identical texts
    **dict.fromkeys(("bleu", "chrf"), (0.0, 100.0 + 1e-6)),
    **dict.fromkeys(("latency_ms", "completion_tokens", "bits_per_byte"), (0.0, LARGEST)),
    "perplexity": (1.0, LARGEST),
}
"""Metric -> its smallest and largest value."""


class Unusable(Exception):
    """These scores cannot be decided on; its two arguments are the reason and the next step."""


@dataclass
class Table:
    """Scores by metric, suite and arm, in the order of the file."""

    rows: dict[str, dict[str, dict[str, list[Score]]]] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Iterable[Score]) -> "Table":
        rows: dict[str, dict[str, dict[str, list[Score]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for score in scores:
            rows[score.metric][score.suite][score.arm].append(score)
        return cls(rows)

    def metric_of(self, gate: GateSpec) -> str:
        """The name under which the gate's scores are stored."""
        if gate.metric in self.rows:
            return gate.metric
        if gate.metric.endswith("_latency_ms"):
            return "latency_ms"
        return READS.get(gate.metric, gate.metric)

    def suites(self, gate: GateSpec) -> list[str]:
        """Suites whose scores the gate reads. Raises Unusable when there are none."""
        name = self.metric_of(gate)
        if not self.rows:
            raise Unusable("there are no scores at all", "run the evaluation first")
        if name not in self.rows:
            raise Unusable(
                f"no scores of metric {name!r}; there are scores of {_listed(self.rows)}",
                f"add {name} to a suite under evaluate, or correct the gate's metric",
            )
        found = self.rows[name]
        if gate.suite is None:
            return sorted(found)
        if gate.suite not in found:
            raise Unusable(
                f"suite {gate.suite!r} has no scores of {name}; {_listed(found)} has",
                "run that suite, or correct the gate's suite",
            )
        return [gate.suite]

    def arm(self, gate: GateSpec, suite: str, arm: str) -> list[Score]:
        """The gate's rows of one arm. Raises Unusable when there are none or an id repeats."""
        name = self.metric_of(gate)
        rows = self.rows[name][suite].get(arm, [])
        if gate.slice is not None:
            rows = [row for row in rows if gate.slice in row.slice]
        where = f"suite {suite}" + (f", slice {gate.slice}" if gate.slice else "")
        if not rows:
            raise Unusable(
                f"{where} has no {name} scores of the {arm}", f"run {where} on the {arm}"
            )
        repeated = [name for name, times in Counter(row.id for row in rows).items() if times > 1]
        if repeated:
            raise Unusable(
                f"{where} scores {len(repeated)} ids of the {arm} more than once, "
                f"first {repeated[0]!r}",
                "give each item one id, and remove the second score",
            )
        return rows

    def items(self) -> dict[str, int]:
        """Suite -> how many items the candidate answered."""
        asked: dict[str, set[str]] = defaultdict(set)
        for suites in self.rows.values():
            for suite, arms in suites.items():
                asked[suite] |= {row.id for row in arms.get("candidate", ())}
        return {suite: len(ids) for suite, ids in sorted(asked.items())}

    def has_arm(self, gate: GateSpec, arm: str) -> bool:
        name = self.metric_of(gate)
        return any(arm in arms for arms in self.rows.get(name, {}).values())


@dataclass(frozen=True, slots=True)
class Sample:
    """Usable scores of one suite: values with weights and clusters, and how many were patched."""

    suite: str
    ids: list[str]
    values: Floats
    weights: Floats
    clusters: NDArray[np.int64] | None
    rows: list[Score]
    invalid: int

    @property
    def is_binary(self) -> bool:
        return bool(np.all((self.values == 0) | (self.values == 1)))

    @property
    def is_share(self) -> bool:
        return bool(np.all((self.values >= 0) & (self.values <= 1)))


def sample(rows: Sequence[Score], metric: str, max_invalid: float, *, arm: str) -> Sample:
    """Numbers from rows. A missing value counts as the worst score up to `max_invalid`.

    Rows are put in the order of their ids, so that a bootstrap does not depend on the file's.
    Raises Unusable for NaN or infinite values, more missing values than that, or a missing value
    of a metric that has no worst score.
    """
    rows = sorted(rows, key=lambda row: row.id)
    suite = rows[0].suite
    broken = [row.id for row in rows if row.value is not None and not math.isfinite(row.value)]
    if broken:
        raise Unusable(
            f"suite {suite} has {len(broken)} of {len(rows)} {metric} scores of the {arm} that are "
            f"not finite, first of {broken[0]!r}",
            "find out why the metric is not a number; no gate passes on it",
        )
    low, high = RANGES.get(metric, (-LARGEST, LARGEST))
    outside = [row for row in rows if row.value is not None and not low <= row.value <= high]
    if outside:
        raise Unusable(
            f"suite {suite} has {len(outside)} of {len(rows)} {metric} scores of the {arm} outside "
            f"[{low:g}, {high:g}], first {outside[0].value:g} of {outside[0].id!r}",
            "find out what wrote them: that metric has no such values",
        )
    if sum(row.weight for row in rows) <= 0:
        raise Unusable(
            f"suite {suite}: the {metric} scores of the {arm} have no weight at all",
            "weights are tokens or bytes behind a value; leave them out where there are none",
        )
    missing = [row for row in rows if row.value is None]
    worst = _worst(metric, rows)
    if missing and (len(missing) > max_invalid * len(rows) or worst is None):
        first = missing[0]
        raise Unusable(
            f"suite {suite} lacks {len(missing)} of {len(rows)} {metric} scores of the {arm} "
            f"(allowed {max_invalid:.1%}), first of {first.id!r}"
            + (f": {first.error}" if first.error else ""),
            "run the evaluation again: it asks only what has no answer",
        )
    if len(rows) < 2:
        raise Unusable(
            f"suite {suite} has one {metric} score of the {arm}; one item proves nothing",
            "add items to the suite",
        )
    patched = [worst if row.value is None else row.value for row in rows]
    return Sample(
        suite,
        [row.id for row in rows],
        np.array(patched, dtype=float),
        np.array([row.weight for row in rows], dtype=float),
        cluster_index(rows),
        rows,
        len(missing),
    )


def paired(one: Sample, other: Sample, *, arm: str) -> None:
    """Raises Unusable unless both samples score the same ids; no pair is dropped silently."""
    mine, theirs = set(one.ids), set(other.ids)
    if mine != theirs:
        lonely = sorted(mine ^ theirs)
        raise Unusable(
            f"suite {one.suite} has {len(lonely)} items scored on one arm only, first "
            f"{lonely[0]!r} (candidate {len(mine)}, {arm} {len(theirs)})",
            "run the evaluation again so that every item has an answer of both arms",
        )


def cluster_index(rows: Sequence[Score]) -> NDArray[np.int64] | None:
    """Cluster number per row; None when every row is its own, as a row without a cluster is."""
    if all(row.cluster is None for row in rows):
        return None
    names = [("", row.id) if row.cluster is None else ("c", row.cluster) for row in rows]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    if len(number) == len(rows):
        return None
    return np.array([number[name] for name in names], dtype=np.int64)


def evidence_digest(*samples: Sample) -> str:
    """sha256 over the scores that were read, independent of their order."""
    rows = [
        [s.suite, row.arm, row.metric, row.id, repr(row.value), repr(row.weight)]
        for s in samples
        for row in s.rows
    ]
    return digest_json(sorted(rows))


def _worst(metric: str, rows: Sequence[Score]) -> float | None:
    known = [row.value for row in rows if row.value is not None]
    if not known or min(known) < 0 or max(known) > 1:
        return None
    return 1.0 if metric in LOWER_IS_BETTER else 0.0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
