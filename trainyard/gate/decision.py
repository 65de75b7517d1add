"""Scores in, one decision out: pure, without clock, network or files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from trainyard.evaluation.scores import Judgement, Score
from trainyard.gate.absolute import decide_absolute
from trainyard.gate.evidence import Table, Unusable
from trainyard.gate.judged import decide_judged
from trainyard.gate.paired import decide_paired
from trainyard.gate.parity import decide_parity
from trainyard.gate.records import Decision, GateResult, Look, Rules, Verdict, worst
from trainyard.parity.record import Parity
from trainyard.recipe.gates import GateSpec

MANY_ATTEMPTS = 5


def decide(
    spec: Sequence[GateSpec],
    scores: Iterable[Score],
    judgements: Iterable[Judgement] = (),
    rules: Rules | None = None,
    parity: Parity | None = None,
) -> Decision:
    """The verdict of every gate and of all blocking gates together.

    Equal scores, gates and rules give the equal decision: the seed of every bootstrap comes from
    `rules.seed` and the gate's id.
    """
    rules = rules or Rules()
    table = Table.of(scores)
    judged = list(judgements)
    results = tuple(
        decide_parity(gate, parity) if gate.is_parity else _decide(gate, table, judged, rules)
        for gate in spec
    )
    blocking = [one for one in results if one.severity == "block"]
    verdict = worst([one.verdict for one in blocking])
    stopped = [one for one in blocking if one.verdict is not Verdict.PASS]
    if not blocking:
        reason = "no blocking gate, so nothing was proven"
    elif not stopped:
        reason = f"all {len(blocking)} blocking gates pass"
    else:
        reason = "; ".join(f"{one.id} {one.verdict}: {one.reason}" for one in stopped)
    return Decision(
        verdict=verdict,
        gates=results,
        reason=reason,
        warnings=_warnings(results, rules),
        looks=(_look(verdict, table, judged, stopped),),
        attempts=rules.attempts,
        alpha=rules.alpha,
        seed=rules.seed,
    )


def decide_best_of(
    spec: Sequence[GateSpec],
    candidates: Mapping[str, tuple[Iterable[Score], Iterable[Judgement], Parity | None]],
    rules: Rules | None = None,
) -> dict[str, Decision]:
    """Decide on candidates that compete on the same items: which of them are proven.

    Holm 1979 (Scand J Stat 6:65): all k are tested at alpha / k; while some pass, the others are
    tested at alpha over the number that is left. The chance that any candidate that should not
    pass does is at most alpha. Each release is one test: all of its gates must pass.
    """
    rules = rules or Rules()
    rows = {
        name: (list(x), list(judged), parity) for name, (x, judged, parity) in candidates.items()
    }
    found: dict[str, Decision] = {}
    left = list(rows)
    while left:
        level = replace(rules, alpha=rules.alpha / len(left))
        for name in left:
            scores, judged, parity = rows[name]
            found[name] = decide(spec, scores, judged, level, parity)
        still = [name for name in left if found[name].verdict is not Verdict.PASS]
        if len(still) == len(left):
            break
        left = still
    return {name: found[name] for name in rows}


def _look(
    verdict: Verdict, table: Table, judgements: Sequence[Judgement], stopped: Sequence[GateResult]
) -> Look:
    judged: dict[str, set[str]] = {}
    for row in judgements:
        judged.setdefault(row.suite, set()).add(row.id)
    items = table.items() | {suite: len(ids) for suite, ids in judged.items()}
    undecided = [one.id for one in stopped if one.verdict is Verdict.INCONCLUSIVE]
    return Look(verdict=verdict, items=items, undecided=tuple(undecided))


def _decide(
    gate: GateSpec, table: Table, judgements: Sequence[Judgement], rules: Rules
) -> GateResult:
    if "champion" in (gate.compare, gate.opponent) and not rules.has_champion:
        return _left_out(gate, rules)
    if gate.is_human and not table.rows.get(table.metric_of(gate), {}).get(gate.suite or ""):
        return _pending(gate, rules)
    try:
        if gate.is_judged:
            return decide_judged(gate, judgements, rules)
        if gate.compare or gate.metric in ("capability_drop", "perplexity_ratio"):
            return decide_paired(gate, table, rules)
        found = decide_absolute(gate, table, rules)
        return found.model_copy(update={"more_helps": False}) if gate.is_human else found
    except Unusable as error:
        reason, next_step = error.args
        return _without_numbers(gate, rules, Verdict.INVALID, reason, next_step)


def _left_out(gate: GateSpec, rules: Rules) -> GateResult:
    """The first release has nothing to compare with: this gate neither passes nor blocks."""
    reason = "left out: there is no champion to compare with yet"
    found = _without_numbers(gate, rules, Verdict.INCONCLUSIVE, reason, None)
    return found.model_copy(update={"severity": "warn"})


def _pending(gate: GateSpec, rules: Rules) -> GateResult:
    reason = f"{gate.sample} answers of suite {gate.suite} wait for people"
    return _without_numbers(gate, rules, Verdict.PENDING_HUMAN, reason, "answer the form")


def _without_numbers(
    gate: GateSpec, rules: Rules, verdict: Verdict, reason: str, next_step: str | None
) -> GateResult:
    op, value = gate.limit
    return GateResult(
        id=gate.id,
        metric=gate.metric,
        suite=gate.suite,
        against=gate.compare or gate.opponent,
        severity=gate.severity,
        verdict=verdict,
        reason=reason,
        next=next_step,
        op=op,
        threshold=value,
        alpha=rules.alpha_of(gate, [gate.suite] if gate.suite else ()),
        seed=rules.seed,
    )


def _warnings(results: Sequence[GateResult], rules: Rules) -> tuple[str, ...]:
    found = [
        f"{one.id} ({one.severity}) {one.verdict}: {one.reason}"
        for one in results
        if one.severity == "warn" and one.verdict is not Verdict.PASS
    ]
    found += [f"{one.id} rests on weak evidence" for one in results if one.weak]
    if rules.attempts >= MANY_ATTEMPTS:
        chance = 1 - (1 - rules.alpha) ** (rules.attempts + 1)
        found.append(
            f"{rules.attempts} other candidates were judged on these eval sets before: by chance "
            f"alone one of {rules.attempts + 1} at the limit passes with {chance:.0%}; "
            "replace the eval sets"
        )
    return tuple(found)
