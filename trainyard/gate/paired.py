"""Gates that compare the candidate with another arm, item by item.

Everything is stated as a drop (or increase) that must stay below a limit: non-inferiority. "No
significant difference" is never evidence of no drop.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from trainyard.gate import bounds
from trainyard.gate.absolute import candidate_sample, exp, log_perplexity
from trainyard.gate.bounds import Bound, Units
from trainyard.gate.evidence import (
    LOWER_IS_BETTER,
    Sample,
    Table,
    Unusable,
    evidence_digest,
    paired,
    sample,
)
from trainyard.gate.records import GateResult, Rules, worst
from trainyard.gate.verdicts import result
from trainyard.recipe.gates import GateSpec


@dataclass(frozen=True, slots=True)
class Pair:
    """One suite's scores of the candidate and of the other arm, in the same order of items."""

    candidate: Sample
    other: Sample

    @property
    def difference(self) -> bounds.Floats:
        return self.candidate.values - self.other.values

    @property
    def is_binary(self) -> bool:
        return self.candidate.is_binary and self.other.is_binary


def decide_paired(gate: GateSpec, table: Table, rules: Rules) -> GateResult:
    """One verdict over all arms that the gate compares with."""
    arms = [gate.compare] if gate.compare else ["base"]
    if gate.metric == "capability_drop" and not gate.compare and table.has_arm(gate, "champion"):
        arms.append("champion")
    results = [_against(gate, table, rules, arm) for arm in arms]
    if len(results) == 1:
        return results[0]
    verdict = worst([one.verdict for one in results])
    decisive = next(one for one in results if one.verdict is verdict)
    return decisive.model_copy(
        update={
            "reason": f"against {' and '.join(arms)}, the decisive one: {decisive.reason}",
            "parts": tuple(results),
        }
    )


def _against(gate: GateSpec, table: Table, rules: Rules, arm: str) -> GateResult:
    pairs = [_pair(gate, table, rules, suite, arm) for suite in table.suites(gate)]
    limit = gate.limit[1]
    whole = _compare(gate, table, rules, pairs, arm, limit)
    if gate.per_task_max_drop is None or len(pairs) < 2:
        return whole
    tasks = [_compare(gate, table, rules, [p], arm, gate.per_task_max_drop) for p in pairs]
    verdict = worst([whole.verdict, *(task.verdict for task in tasks)])
    decisive = next(one for one in (whole, *tasks) if one.verdict is verdict)
    return whole.model_copy(
        update={
            "verdict": verdict,
            "reason": whole.reason if decisive is whole else decisive.reason,
            "next": decisive.next,
            "more_helps": decisive.more_helps,
            "parts": (whole, *tasks),
        }
    )


def _pair(gate: GateSpec, table: Table, rules: Rules, suite: str, arm: str) -> Pair:
    name = table.metric_of(gate)
    mine = candidate_sample(gate, table, rules, suite)
    rows = table.arm(gate, suite, arm)
    theirs = sample(rows, name, rules.max_invalid, arm=arm)
    paired(mine, theirs, arm=arm)
    place = {row.id: row for row in rows}
    aligned = sample([place[key] for key in mine.ids], name, rules.max_invalid, arm=arm)
    return Pair(mine, _kind_to_the_other(name, aligned))


def _kind_to_the_other(metric: str, other: Sample) -> Sample:
    """A missing score of the other arm counts as its best one: it never helps the candidate."""
    if not other.invalid:
        return other
    best = 0.0 if metric in LOWER_IS_BETTER else 1.0
    values = other.values.copy()
    values[[row.value is None for row in other.rows]] = best
    return Sample(
        other.suite, other.ids, values, other.weights, other.clusters, other.rows, other.invalid
    )


def _compare(
    gate: GateSpec, table: Table, rules: Rules, pairs: list[Pair], arm: str, limit: float
) -> GateResult:
    name = table.metric_of(gate)
    alpha = rules.alpha_of(gate, [pair.candidate.suite for pair in pairs])
    seeds = [rules.seed, zlib.crc32(f"{gate.id}/{arm}".encode())]
    bound, what = _measure(gate, name, pairs, alpha, seeds, limit)
    suites = "+".join(pair.candidate.suite for pair in pairs)
    quantity = f"{what} against {arm} on suite {suites}"
    found = result(gate, bound, alpha=alpha, quantity=quantity, limit=limit)
    return found.model_copy(
        update={
            "suite": suites,
            "against": arm,
            "invalid": sum(pair.candidate.invalid + pair.other.invalid for pair in pairs),
            "seed": rules.seed,
            "digest": evidence_digest(*(s for p in pairs for s in (p.candidate, p.other))),
        }
    )


def _measure(
    gate: GateSpec,
    name: str,
    pairs: list[Pair],
    alpha: float,
    seeds: list[int],
    limit: float,
) -> tuple[Bound, str]:
    if gate.metric == "perplexity_ratio":
        strata = [_log_ratio(pair) for pair in pairs]
        near = math.log(limit) if limit > 0 else math.nan
        bound = _bootstrap(strata, alpha, seeds, near, share=False)
        return bounds.mapped(bound, exp), "perplexity ratio"
    rises = gate.max_increase is not None or (gate.max_drop is None and name in LOWER_IS_BETTER)
    sign = 1.0 if rises else -1.0
    what = f"{'increase' if rises else 'drop'} of {name}"
    if gate.scale == "relative":
        strata = [_relative(pair, sign) for pair in pairs]
        return _bootstrap(strata, alpha, seeds, limit, share=False), f"relative {what}"
    if len(pairs) == 1 and pairs[0].is_binary and pairs[0].candidate.clusters is None:
        bound = _tango(pairs[0], alpha, limit)
        return (bound if sign > 0 else bounds.negated(bound)), what
    share = all(pair.candidate.is_share and pair.other.is_share for pair in pairs)
    strata = [
        bounds.units(sign * pair.difference, pair.candidate.weights, pair.candidate.clusters)
        for pair in pairs
    ]
    return _bootstrap(strata, alpha, seeds, limit, share=share), what


def _tango(pair: Pair, alpha: float, margin: float) -> Bound:
    b = int(np.sum(pair.difference == 1))
    c = int(np.sum(pair.difference == -1))
    return bounds.tango_bound(b, c, len(pair.difference), alpha, margin=margin)


def _log_ratio(pair: Pair) -> Units:
    """Difference of the loss per token. Raises Unusable when the arms count tokens differently."""
    mine, theirs = pair.candidate, pair.other
    if not np.array_equal(mine.weights, theirs.weights):
        raise Unusable(
            f"suite {mine.suite}: candidate and base count different tokens in the same documents",
            "their tokenizers differ; gate on bits_per_byte with compare: base instead",
        )
    difference = log_perplexity(mine) - log_perplexity(theirs)
    return bounds.units(difference, mine.weights, mine.clusters)


def _relative(pair: Pair, sign: float) -> Units:
    """Change as a share of the other arm's total, a ratio of sums."""
    if float(pair.other.values.sum()) <= 0:
        raise Unusable(
            f"suite {pair.other.suite}: the other arm scores 0, so no relative change is defined",
            "use scale: absolute",
        )
    return bounds.units_of_sums(sign * pair.difference, pair.other.values, pair.candidate.clusters)


def _bootstrap(
    strata: list[Units], alpha: float, seeds: list[int], limit: float, *, share: bool
) -> Bound:
    if any(len(stratum.sums) < 2 for stratum in strata):
        raise Unusable(
            "one cluster is one observation and has no spread", "add items that are independent"
        )
    bound = bounds.bootstrap_mean(strata, alpha, seeds, limit=limit)
    if bound.method != "no_spread" or not share:
        return bound
    # no item differs: at most a share 1 - alpha^(1/units) of them may, each by at most 1
    few = min(len(stratum.sums) for stratum in strata)
    reach = 1 - alpha ** (1 / few)
    return Bound(
        bound.estimate, bound.estimate - reach, bound.estimate + reach, bound.n,
        "zero_differences", bound.clusters, sd=0.0,
    )  # fmt: skip
