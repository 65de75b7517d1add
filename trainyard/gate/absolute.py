"""Gates with a fixed limit: one arm's scores against a number."""

import math
import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from trainyard.evaluation import corpus
from trainyard.evaluation.scores import Score
from trainyard.gate import bounds, recall
from trainyard.gate.bounds import Bound, Floats
from trainyard.gate.evidence import Sample, Table, Unusable, evidence_digest, sample
from trainyard.gate.records import GateResult, Rules, worst
from trainyard.gate.verdicts import result
from trainyard.recipe.gates import GateSpec

POOLED = frozenset({"harmful", "refused", "biased"})
"""Rates over prompts of any suite: their suites are counted together."""

RARE_EVENTS = frozenset({"harmful_rate", "bias_rate", "human_issue_rate"})
"""Rates whose bound is always Clopper and Pearson's."""

PERCENTILE = re.compile(r"p(?P<percent>\d{1,2}(?:\.\d+)?)_latency_ms")


def decide_absolute(gate: GateSpec, table: Table, rules: Rules) -> GateResult:
    """One verdict over all suites that have the metric: every suite must pass."""
    name = table.metric_of(gate)
    suites = table.suites(gate)
    samples = [candidate_sample(gate, table, rules, suite) for suite in suites]
    if name in POOLED and len(samples) > 1:
        samples = [_pooled(samples)]
    alpha = rules.alpha_of(gate, suites)
    results = [
        _decide(gate, name, one, alpha, rules.seed, recall.labelled(table, one.suite.split("+")))
        for one in samples
    ]
    if len(results) == 1:
        return results[0]
    verdict = worst([one.verdict for one in results])
    decisive = next(one for one in results if one.verdict is verdict)
    return decisive.model_copy(
        update={
            "reason": f"{len(results)} suites, the decisive one: {decisive.reason}",
            "digest": evidence_digest(*samples),
            "parts": tuple(results),
        }
    )


def candidate_sample(gate: GateSpec, table: Table, rules: Rules, suite: str) -> Sample:
    """Scores of the candidate. Raises Unusable when too many of its answers were cut."""
    rows = table.arm(gate, suite, "candidate")
    cut = sum(row.truncated for row in rows)
    if cut > rules.max_truncated * len(rows):
        raise Unusable(
            f"suite {suite}: {cut} of {len(rows)} answers of the candidate were cut at max_tokens "
            f"(allowed {rules.max_truncated:.1%})",
            "raise the suite's max_tokens, or train the model to end its answers",
        )
    return sample(rows, table.metric_of(gate), rules.max_invalid, arm="candidate")


def _decide(
    gate: GateSpec,
    name: str,
    one: Sample,
    alpha: float,
    seed: int,
    labelled: Sequence[Score],
) -> GateResult:
    if labelled:
        found_of = sum(row.value == 1 for row in labelled), len(labelled)
        bound = measure(gate, name, one, alpha / 2, seed)
        bound = recall.corrected(bound, *found_of, alpha / 2)
    else:
        bound = measure(gate, name, one, alpha, seed)
    quantity = f"{gate.metric} on suite {one.suite}"
    found = result(gate, bound, alpha=alpha, quantity=quantity)
    return found.model_copy(
        update={
            "suite": one.suite,
            "invalid": one.invalid,
            "seed": seed,
            "digest": evidence_digest(one),
        }
    )


def measure(gate: GateSpec, name: str, one: Sample, alpha: float, seed: int) -> Bound:
    """The bound that fits the kind of scores."""
    seeds = [seed, zlib.crc32(gate.id.encode())]
    percentile = PERCENTILE.fullmatch(gate.metric)
    if percentile:
        share = float(percentile["percent"]) / 100
        return bounds.quantile_bound(_slowest(one), share, alpha)
    statistics = corpus.statistics(name, one.rows)
    if statistics is not None:
        return _corpus(one, *statistics, alpha, seeds)
    if name == "perplexity":
        return _perplexity(gate, one, alpha, seeds)
    if gate.metric == "human_win_rate" and one.clusters is None:
        op, value = gate.limit
        return bounds.share_mean(one.values, alpha, op=op, value=value)
    if one.is_binary and gate.interval in ("auto", "wilson", "clopper_pearson"):
        return _rate(gate, one, alpha)
    return _mean(gate, one, alpha, seeds)


def _slowest(one: Sample) -> Floats:
    """One value per independent unit: of a cluster its largest, which bounds what it holds."""
    if one.clusters is None:
        return one.values
    largest = np.full(int(one.clusters.max()) + 1, -np.inf)
    np.maximum.at(largest, one.clusters, one.values)
    return largest


def _rate(gate: GateSpec, one: Sample, alpha: float) -> Bound:
    if one.clusters is not None:
        if gate.interval != "auto":
            raise Unusable(
                f"gate {gate.id} asks for {gate.interval}, which counts items, and suite "
                f"{one.suite} has clusters of items that are not independent",
                "leave interval out",
            )
        return bounds.clustered_binomial(one.values, one.clusters, alpha)
    interval = "clopper_pearson" if gate.metric in RARE_EVENTS else gate.interval
    k = int(one.values.sum())
    op, value = gate.limit
    return bounds.binomial(k, len(one.values), alpha, op=op, value=value, interval=interval)


def _mean(gate: GateSpec, one: Sample, alpha: float, seeds: list[int]) -> Bound:
    unclustered = one.clusters is None and bool(np.all(one.weights == 1))
    if gate.interval == "t" and unclustered:
        return bounds.mean_t(one.values, alpha)
    if gate.interval not in ("auto", "bootstrap"):
        raise Unusable(
            f"gate {gate.id} asks for {gate.interval}, which does not fit the {gate.metric} "
            f"scores of suite {one.suite} (not 0/1, weighted or clustered)",
            "leave interval out",
        )
    units = bounds.units(one.values, one.weights, one.clusters)
    few = one.is_share and len(units.sums) < bounds.FEW and gate.interval == "auto"
    if len(units.sums) < 2 or few or units.variance == 0:
        return _few(gate, one, units, alpha)
    return bounds.bootstrap_mean([units], alpha, seeds, limit=gate.limit[1])


def _few(gate: GateSpec, one: Sample, units: bounds.Units, alpha: float) -> Bound:
    """Few units, or none that differs: scores in [0, 1] still have a bound, others do not."""
    if not one.is_share:
        mean = units.mean
        return Bound(mean, mean, mean, len(units.sums), "no_spread", sd=0.0)
    op, value = gate.limit
    return bounds.share_mean(units.sums / units.weights, alpha, op=op, value=value)


def _perplexity(gate: GateSpec, one: Sample, alpha: float, seeds: list[int]) -> Bound:
    """Exp of the mean loss per token over all documents, never the mean of their perplexities."""
    units = bounds.units(log_perplexity(one), one.weights, one.clusters)
    if len(units.sums) < 2:
        raise Unusable(f"suite {one.suite} has one cluster", "add items that are independent")
    value = gate.limit[1]
    limit = math.log(value) if value > 0 else math.nan
    bound = bounds.bootstrap_mean([units], alpha, seeds, limit=limit)
    return bounds.mapped(bound, exp)


def log_perplexity(one: Sample) -> Floats:
    """Mean loss per token of each document. Raises Unusable for values that are none."""
    if np.any(one.values < 1) or one.weights.sum() <= 0:
        raise Unusable(
            f"suite {one.suite} has a perplexity below 1 or no tokens at all",
            "a perplexity is exp(loss / tokens) and at least 1; check the scorer",
        )
    return np.log(one.values)


def exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _corpus(
    one: Sample,
    stats: Floats,
    score: Callable[[Floats], Floats],
    alpha: float,
    seeds: list[int],
) -> Bound:
    if one.clusters is not None:
        summed = np.zeros((int(one.clusters.max()) + 1, stats.shape[1]))
        np.add.at(summed, one.clusters, stats)
        stats = summed
    if len(stats) < 2:
        raise Unusable(f"suite {one.suite} has one cluster", "add items that are independent")
    return bounds.corpus_bootstrap(stats, score, alpha, seeds)


def _pooled(samples: list[Sample]) -> Sample:
    """All suites as one; equal ids and clusters of different suites stay different."""
    clusters = None
    if any(one.clusters is not None for one in samples):
        parts, offset = [], 0
        for one in samples:
            own = one.clusters if one.clusters is not None else np.arange(len(one.ids))
            parts.append(own + offset)
            offset += int(own.max()) + 1
        clusters = np.concatenate(parts)
    return Sample(
        suite="+".join(one.suite for one in samples),
        ids=[f"{one.suite}/{name}" for one in samples for name in one.ids],
        values=np.concatenate([one.values for one in samples]),
        weights=np.concatenate([one.weights for one in samples]),
        clusters=clusters,
        rows=[row for one in samples for row in one.rows],
        invalid=sum(one.invalid for one in samples),
    )
