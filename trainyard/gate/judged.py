"""The gate on a judge's verdicts: both orders, invalid calls as losses, a calibrated judge."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from trainyard.evaluation.judge.rate import consistency, item_scores, win_rate
from trainyard.evaluation.scores import Judgement
from trainyard.files import digest_json
from trainyard.gate import bounds
from trainyard.gate.bounds import Bound
from trainyard.gate.evidence import Unusable
from trainyard.gate.records import GateResult, Rules, Verdict
from trainyard.gate.verdicts import result
from trainyard.recipe.gates import GateSpec

MAX_INVALID_CALLS = 0.02
MIN_LABELS = 100
"""Labels of this run from which the judge's rate is corrected: with 50 a flattering judge's
candidate at the limit passes in 6 % of releases (bench/gate_calibration.py)."""


def decide_judged(gate: GateSpec, judgements: Sequence[Judgement], rules: Rules) -> GateResult:
    """Decide on a judge's verdicts on pairs, or on its grades of answers shown alone."""
    single = gate.metric == "rubric_score"
    rows = _rows(gate, [row for row in judgements if (row.order == "single") == single])
    return _graded(gate, rows, rules) if single else _compared(gate, rows, rules)


def _graded(gate: GateSpec, rows: Sequence[Judgement], rules: Rules) -> GateResult:
    """The mean grade of the candidate's answers; an invalid call counts as the worst grade."""
    _check(rows, orders=1)
    alpha = rules.alpha_of(gate, {row.suite for row in rows})
    grades: dict[str, list[float]] = {}
    for row in rows:
        grades.setdefault(row.id, []).append(row.grade or 0.0)
    values = np.array([sum(given) / len(given) for given in grades.values()])
    bound = _bound(gate, list(grades), values, rows, alpha, rules.seed)
    invalid = sum(row.verdict == "invalid" for row in rows)
    found = result(gate, bound, alpha=alpha, quantity="mean grade")
    return _as_judged(
        gate, found, rows, rules, invalid, f"; {invalid} of {len(rows)} calls invalid"
    )


def _compared(gate: GateSpec, rows: Sequence[Judgement], rules: Rules) -> GateResult:
    judge = [row for row in rows if not row.human]
    human = [row for row in rows if row.human]
    _check(judge)
    rate = win_rate(judge)
    alpha = rules.alpha_of(gate, {row.suite for row in judge})
    bound, how = _measure(gate, judge, human, alpha, rules.seed)
    found = result(gate, bound, alpha=alpha, quantity=f"win rate{how}")
    facts = (
        f"; {rate.wins} wins, {rate.ties} ties, {rate.losses} losses, "
        f"{rate.invalid} of {rate.calls} calls invalid, "
        f"{_percent(rate.consistent)} of items consistent in both orders, "
        f"first answer chosen in {_percent(rate.first)}"
    )
    return _as_judged(gate, found, rows, rules, rate.invalid, facts)


def _as_judged(
    gate: GateSpec,
    found: GateResult,
    rows: Sequence[Judgement],
    rules: Rules,
    invalid: int,
    facts: str,
) -> GateResult:
    """The record of a gate on a judge, which may not pass when the judge is in doubt."""
    judge = [row for row in rows if not row.human]
    update: dict[str, object] = {
        "reason": found.reason + facts,
        "suite": judge[0].suite or None,
        "invalid": invalid,
        "seed": rules.seed,
        "against": gate.opponent,
        "digest": digest_json(sorted(map(repr, rows))),
    }
    doubt = _doubt(gate, judge, invalid / len(judge))
    if doubt is not None:
        update |= {"verdict": Verdict.INCONCLUSIVE, "reason": f"{doubt[0]}; {found.reason}{facts}",
                   "next": doubt[1], "more_helps": False}  # fmt: skip
    elif gate.require_calibration is False or not any(row.fingerprint for row in judge):
        update |= {"weak": True, "reason": f"{found.reason}{facts}; weak evidence: the judge was "
                   "not measured against human labels here"}  # fmt: skip
    return found.model_copy(update=update)


def _rows(gate: GateSpec, judgements: Sequence[Judgement]) -> list[Judgement]:
    rows = [
        row
        for row in judgements
        if (gate.suite is None or row.suite == gate.suite)
        and (gate.opponent is None or row.opponent == gate.opponent)
    ]
    if not any(not row.human for row in rows):
        raise Unusable(
            f"there are no judgements for gate {gate.id} ({len(judgements)} in all)",
            f"run a {'rubric' if gate.metric == 'rubric_score' else 'pairwise'} suite, or correct "
            "the gate's suite and opponent",
        )
    return rows


def _check(rows: Sequence[Judgement], orders: int = 2) -> None:
    """Raises Unusable for repeated calls, a missing order, one item, or a judge that changed."""
    calls = Counter((row.id, row.suite, row.opponent, row.juror, row.order) for row in rows)
    twice = [call for call, times in calls.items() if times > 1]
    if twice:
        raise Unusable(
            f"{len(twice)} judgements are there more than once, first of item {twice[0][0]!r}",
            "keep one judgement per item, juror and order",
        )
    items = {row.id for row in rows}
    wanted = {(row.suite, row.opponent) for row in rows}
    if len(wanted) > 1:
        raise Unusable(
            f"the judgements mix {len(wanted)} comparisons (suite, opponent)",
            "name suite or opponent in the gate",
        )
    jurors = {row.juror for row in rows}
    wanted_calls = len(items) * len(jurors) * orders
    missing = wanted_calls - len(calls)
    if missing:
        both = "and two orders " if orders == 2 else ""
        raise Unusable(
            f"{missing} judgements are missing: {len(items)} items, {len(jurors)} jurors {both}"
            f"make {wanted_calls}, found {len(calls)}",
            "run the judge again: it asks only what has no verdict",
        )
    if len(items) < 2:
        raise Unusable("one judged item proves nothing", "add items to the suite")
    for juror in sorted(jurors):
        prints = {row.fingerprint for row in rows if row.juror == juror and row.fingerprint}
        if len(prints) > 1:
            raise Unusable(
                f"juror {juror!r} changed in the middle: {len(prints)} fingerprints",
                "pin the judge (a dated model id, fixed prompts) and judge everything again",
            )


def _measure(
    gate: GateSpec,
    judge: Sequence[Judgement],
    human: Sequence[Judgement],
    alpha: float,
    seed: int,
) -> tuple[Bound, str]:
    scores = item_scores(judge)
    labels = item_scores(human)
    both = [item for item in scores if item in labels]
    rest = [item for item in scores if item not in labels]
    if len(both) >= MIN_LABELS and len(rest) >= 2:
        given = np.array([labels[i] for i in both])
        judged = np.array([scores[i] for i in both])
        others = np.array([scores[i] for i in rest])
        seeds = [seed, zlib.crc32(gate.id.encode())]
        bound = bounds.corrected_mean(given, judged, others, alpha, seeds)
        if bound.method == "no_spread":  # as many labels as there are, and no more than that
            op, value = gate.limit
            return bounds.share_mean(given, alpha, op=op, value=value), " of people"
        return bound, f" corrected by {len(both)} human labels"
    values = np.array(list(scores.values()))
    return _bound(gate, list(scores), values, judge, alpha, seed), ""


def _bound(
    gate: GateSpec,
    items: Sequence[str],
    values: bounds.Floats,
    judge: Sequence[Judgement],
    alpha: float,
    seed: int,
) -> Bound:
    """A mean of scores in [0, 1] over items, or over clusters of them."""
    cluster = {row.id: row.cluster for row in judge if row.cluster is not None}
    if cluster:
        names = [cluster.get(item, f"item {item}") for item in items]
        _, index = np.unique(names, return_inverse=True)
        units = bounds.units(values, np.ones(len(values)), index)
        if len(units.sums) > 1 and units.variance > 0:
            seeds = [seed, zlib.crc32(gate.id.encode())]
            return bounds.bootstrap_mean([units], alpha, seeds, limit=gate.limit[1])
        values = units.sums / units.weights
    elif gate.interval == "t":
        return bounds.mean_t(values, alpha)
    op, value = gate.limit
    return bounds.share_mean(values, alpha, op=op, value=value)


def _doubt(gate: GateSpec, judge: Sequence[Judgement], invalid: float) -> tuple[str, str] | None:
    """Why these judgements cannot pass, with the next step; None when they may."""
    if invalid > MAX_INVALID_CALLS:
        notes = Counter((row.note or "no reason given").split(":")[0]
                        for row in judge if row.verdict == "invalid")  # fmt: skip
        why = ", ".join(f"{times} {note}" for note, times in notes.most_common(3))
        return (
            f"{invalid:.1%} of the judge's calls are invalid (allowed {MAX_INVALID_CALLS:.0%}): "
            f"{why}",
            "look at the invalid answers: a larger max_tokens or another judge",
        )
    if gate.metric == "win_rate" and math.isnan(consistency(judge)):
        return ("no item has a valid verdict in both orders", "use another judge")
    named = any(row.fingerprint for row in judge)
    needs = named if gate.require_calibration is None else gate.require_calibration
    if needs and not (named and all(row.calibrated for row in judge if row.fingerprint)):
        return (
            "judge_uncalibrated: this judge was not shown to agree with people",
            "let people label at least 100 and name the file under the suite's calibration",
        )
    return None


def _percent(share: float) -> str:
    return "n/a" if math.isnan(share) else f"{share:.0%}"
