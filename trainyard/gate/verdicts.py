"""From a bound and a limit to a verdict, with a reason in numbers and the next step."""

import math

from trainyard.gate.bounds import Bound
from trainyard.gate.planning import items_for_events, items_for_mean, items_for_rate
from trainyard.gate.records import GateResult, Verdict
from trainyard.recipe.gates import GateSpec

RARE = 0.05
ENOUGH_IDENTICAL = 59
"""With so many identical items, fewer than 5 % can differ (0.95^59 < 0.05)."""
ENOUGH_SPREAD = 20
"""Units below which a bootstrap or t bound of unbounded scores cannot open a gate."""


def compare(bound: Bound, op: str, value: float) -> Verdict:
    """PASS when the bound is past the limit; FAIL when all of the interval is on the wrong side."""
    if any(math.isnan(x) for x in (bound.estimate, bound.low, bound.high, value)):
        return Verdict.INVALID
    passed = {
        ">=": bound.low >= value, ">": bound.low > value,
        "<=": bound.high <= value, "<": bound.high < value,
    }[op]  # fmt: skip
    failed = {
        ">=": bound.high < value, ">": bound.high <= value,
        "<=": bound.low > value, "<": bound.low >= value,
    }[op]  # fmt: skip
    return Verdict.PASS if passed else Verdict.FAIL if failed else Verdict.INCONCLUSIVE


def compare_point(bound: Bound, op: str, value: float) -> Verdict:
    point = Bound(bound.estimate, bound.estimate, bound.estimate, bound.n, "point")
    return compare(point, op, value)


def result(
    gate: GateSpec, bound: Bound, *, alpha: float, quantity: str, limit: float | None = None
) -> GateResult:
    """The record of one gate; `quantity` names what was estimated, for the reason.

    `limit` replaces the gate's own, for the guard on each task.
    """
    op, value = gate.limit
    value = value if limit is None else limit
    weak = gate.decision == "point"
    verdict = compare_point(bound, op, value) if weak else compare(bound, op, value)
    too_few = _too_few(bound)
    if too_few is not None and verdict is Verdict.PASS:
        verdict = Verdict.INCONCLUSIVE
    needed = too_few
    if verdict is Verdict.INCONCLUSIVE and too_few is None:
        needed = _needed(bound, op, value, alpha)
    level = f"{1 - alpha:.4g}"
    reason = (
        f"{quantity} {show(bound.estimate)}, one-sided {level} bounds "
        f"[{show(bound.low)}, {show(bound.high)}] by {bound.method}, n {bound.n}"
        + (f" in {bound.clusters} clusters" if bound.clusters is not None else "")
        + f", limit {op} {show(value)}"
        + ("; weak evidence: the estimate alone was compared" if weak else "")
    )
    return GateResult(
        id=gate.id,
        metric=gate.metric,
        suite=gate.suite,
        severity=gate.severity,
        verdict=verdict,
        reason=reason,
        next=_next(verdict, bound, needed),
        estimate=finite(bound.estimate),
        low=finite(bound.low),
        high=finite(bound.high),
        n=bound.n,
        clusters=bound.clusters,
        op=op,
        threshold=value,
        method="point" if weak else bound.method,
        alpha=alpha,
        needed=needed,
        more_helps=verdict is Verdict.INCONCLUSIVE and not weak,
        weak=weak,
    )


def show(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "unbounded"


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _too_few(bound: Bound) -> int | None:
    """Units that this kind of bound asks for, when there are fewer."""
    least = {"no_spread": ENOUGH_IDENTICAL, "t": ENOUGH_SPREAD, "bootstrap": ENOUGH_SPREAD,
             "clustered_bootstrap": ENOUGH_SPREAD}.get(bound.method, 0)  # fmt: skip
    return least if (bound.clusters or bound.n) < least else None


def _needed(bound: Bound, op: str, value: float, alpha: float) -> int | None:
    """Items at which this estimate would pass: exactly for rare events, else at 80 % power."""
    good = bound.estimate - value if op in (">=", ">") else value - bound.estimate
    if good <= 0:
        return None
    found: int | None
    if bound.method == "order_statistics" or bound.sd is None:
        return None
    if "clopper" in bound.method and op in ("<=", "<") and value <= RARE:
        found = items_for_events(round(bound.estimate * bound.n), value, alpha)
    elif bound.method in ("wilson", "clopper_pearson") and 0 <= value <= 1:
        found = items_for_rate(bound.estimate, value, alpha, op=op)
    else:
        found = items_for_mean(good, bound.sd, alpha)
    return None if found is None or found <= bound.n else found


def _next(verdict: Verdict, bound: Bound, needed: int | None) -> str | None:
    if verdict is Verdict.PASS:
        return None
    if verdict is Verdict.FAIL:
        return "change the data or the training: the whole interval is past the limit"
    if verdict is Verdict.INVALID:
        return "find out why the estimate is not a number"
    if bound.method == "no_spread":
        return f"needs {needed} items, has {bound.n}: identical scores say nothing of spread"
    if needed is not None:
        return f"needs {needed} items, has {bound.n}"
    return (
        f"{bound.n} items cannot tell this estimate from the limit: improve the model, or add items"
    )
