"""Before anything is spent: whether a gate can pass with these items, and what it can see."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import bdtr

from trainyard.evaluation.scores import guard_suite
from trainyard.gate import bounds
from trainyard.gate.absolute import PERCENTILE, POOLED, RARE_EVENTS
from trainyard.gate.bounds import Bound
from trainyard.gate.evidence import READS
from trainyard.gate.planning import POWER, items_for_events, smallest, z
from trainyard.gate.records import Rules, Verdict
from trainyard.gate.verdicts import compare
from trainyard.recipe.gates import GateSpec

DISCORDANT = 0.1
"""Share of items on which two arms differ, assumed for planning a paired 0/1 gate."""
SPREAD = 0.3
"""Standard deviation of a score in [0, 1], assumed for planning a gate on a mean."""
PROBES = "/parity"
"""Where the plan of the suites says how many probes the parity gate has."""
RATES = frozenset(
    {"exact_match", "accuracy", "contains", "regex", "json_match", "constraints", "stopped_by_eos",
     "harmful", "refused", "biased", "capability", "micro_f1"}
)  # fmt: skip
"""Metrics whose scores are 0 or 1."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One suite as it will run: independent items (clusters count once) and what it scores."""

    n: int
    metrics: Collection[str]
    most: int | None = None
    """Independent items when every further look is taken, where there are any."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """What one gate can do with the items it will get."""

    id: str
    n: int
    min_detectable: float | None
    """True value (or true drop) that passes with probability 0.8; None when none does."""
    can_pass: bool
    problem: str | None
    """Why the gate cannot pass, and with how many items it could; None when it can."""
    assumed: str | None = None
    most: int | None = None
    """Items at most, where an INCONCLUSIVE gate may draw on more than `n`."""


def foresee(
    spec: Sequence[GateSpec],
    suites: Mapping[str, Planned],
    arms: Collection[str] = ("candidate", "base"),
    rules: Rules | None = None,
) -> list[Foresight]:
    """One record per gate. A gate with a problem is an error before any training."""
    rules = rules or Rules()
    return [_foresee_looks(gate, suites, arms, rules) for gate in spec]


def _foresee_looks(
    gate: GateSpec, suites: Mapping[str, Planned], arms: Collection[str], rules: Rules
) -> Foresight:
    """With the items of the first look; whether it can pass, with those of the last."""
    read = [name for name, plan in suites.items()
            if gate.suite in (None, name) and _reads(gate) in plan.metrics]  # fmt: skip
    alpha = rules.alpha_of(gate, read)
    first = _foresee(gate, suites, arms, alpha)
    if all(suites[name].most is None for name in read):
        return first
    grown = {name: replace(plan, n=plan.most or plan.n) for name, plan in suites.items()}
    last = _foresee(gate, grown, arms, alpha)
    return replace(last, n=first.n, most=last.n)


def _foresee(
    gate: GateSpec, suites: Mapping[str, Planned], arms: Collection[str], alpha: float
) -> Foresight:
    metric = _reads(gate)
    if gate.is_parity:
        asked = suites.get(PROBES, Planned(0, ())).n
        return Foresight(gate.id, asked, None, True, None, "every token of every probe is compared")
    if gate.suite is not None and gate.suite not in suites:
        return _never(gate, f"suite {gate.suite!r} is not in evaluate ({_listed(suites)})")
    if gate.is_human:
        return _sampled(gate, suites, arms, alpha)
    having = {name: plan for name, plan in suites.items()
              if metric in plan.metrics and gate.suite in (None, name)}  # fmt: skip
    if not having:
        where = f"suite {gate.suite}" if gate.suite else "any suite"
        return _never(gate, f"{metric} is not a metric of {where}")
    if "champion" in (gate.compare, gate.opponent) and "champion" not in arms:
        return Foresight(gate.id, 0, None, True, None, "left out: there is no champion yet")
    if gate.compare is not None and gate.compare not in arms:
        return _never(gate, f"compare: {gate.compare}, and this release has no {gate.compare}")
    sizes = [plan.n for plan in having.values()]
    pooled = metric in POOLED or _is_paired(gate)
    n = sum(sizes) if pooled else min(sizes)
    if n < 2:
        return _never(gate, f"{n} items prove nothing", n)
    if PERCENTILE.fullmatch(gate.metric):
        return _percentile(gate, n, alpha)
    if _is_paired(gate):
        return _paired(gate, metric, n, alpha)
    caught = [suites[guard_suite(name)] for name in having if guard_suite(name) in suites]
    if caught and gate.value is not None and gate.op in ("<=", "<"):
        return _with_recall(gate, n, sum(plan.n for plan in caught), alpha)
    if gate.is_judged or metric in RATES:  # grades are planned as rates: their spread is no larger
        return _rate(gate, n, alpha)
    return _mean(gate, metric, n, alpha)


def _sampled(
    gate: GateSpec, suites: Mapping[str, Planned], arms: Collection[str], alpha: float
) -> Foresight:
    """People see `sample` answers of a suite, which must hold as many."""
    wanted, plan = gate.sample or 0, suites[gate.suite or ""]
    if gate.opponent == "champion" and "champion" not in arms:
        return Foresight(gate.id, 0, None, True, None, "left out: there is no champion yet")
    if "perplexity" in plan.metrics:
        return _never(gate, f"suite {gate.suite} holds documents, and people see answers")
    if wanted > plan.n:
        return _never(
            gate, f"sample is {wanted}, and suite {gate.suite} has {plan.n} items", plan.n
        )
    if wanted < 2:
        return _never(gate, f"{wanted} items prove nothing", wanted)
    return _rate(gate, wanted, alpha)


def _with_recall(gate: GateSpec, n: int, labelled: int, alpha: float) -> Foresight:
    """A guard that finds all of its labelled examples, at the level that the correction leaves."""
    least = (alpha / 2) ** (1 / labelled)
    found = _rate(gate.model_copy(update={"value": (gate.value or 0) * least}), n, alpha / 2)
    how = f"the guard finds all of {labelled} labelled examples, so at least {least:.3f} of all"
    problem = None if found.problem is None else f"{found.problem}, when {how}"
    return replace(found, problem=problem, assumed=how)


def _rate(gate: GateSpec, n: int, alpha: float) -> Foresight:
    op, value = gate.limit
    up = op in (">=", ">")

    def best(items: int) -> bool:
        return (
            compare(_rate_bound(gate, items if up else 0, items, alpha), op, value).value == "PASS"
        )

    if not best(n):
        needed = smallest(best, n) if 0 < value < 1 else None
        if not up and "clopper" in _rate_bound(gate, 0, n, alpha).method:
            needed = items_for_events(0, value, alpha)
        return _impossible(gate, n, needed)
    least = next(
        (rate for rate in (_grid(value, up)) if _power(gate, rate, n, alpha) >= POWER), None
    )
    return Foresight(gate.id, n, least, True, None)


def _grid(value: float, up: bool) -> list[float]:
    steps = 400
    end = 1.0 if up else 0.0
    return [value + (end - value) * step / steps for step in range(1, steps + 1)]


def _power(gate: GateSpec, rate: float, n: int, alpha: float) -> float:
    """Exact probability that a model with this true rate passes."""
    op, value = gate.limit
    up = op in (">=", ">")
    k = _edge(gate, n, alpha, op, value)
    if k is None:
        return 0.0
    from_low = float(bdtr(k if not up else k - 1, n, rate)) if (k > 0 or not up) else 0.0
    return 1 - from_low if up else from_low


def _edge(gate: GateSpec, n: int, alpha: float, op: str, value: float) -> int | None:
    """Fewest successes that pass (an upper gate: most events), by bisection."""
    up = op in (">=", ">")

    def passes(k: int) -> bool:
        return compare(_rate_bound(gate, k, n, alpha), op, value) is Verdict.PASS

    low, high = 0, n
    if not passes(n if up else 0):
        return None
    while low < high:
        middle = (low + high) // 2 if up else (low + high + 1) // 2
        if up:
            low, high = (low, middle) if passes(middle) else (middle + 1, high)
        else:
            low, high = (middle, high) if passes(middle) else (low, middle - 1)
    return low


def _rate_bound(gate: GateSpec, k: int, n: int, alpha: float) -> Bound:
    op, value = gate.limit
    interval = "clopper_pearson" if gate.metric in RARE_EVENTS else gate.interval
    if gate.is_judged:
        interval = "wilson"
    if interval not in ("auto", "wilson", "clopper_pearson"):
        interval = "auto"
    return bounds.binomial(k, n, alpha, op=op, value=value, interval=interval)


def _paired(gate: GateSpec, metric: str, n: int, alpha: float) -> Foresight:
    limit = gate.limit[1]
    if gate.metric == "perplexity_ratio":
        if limit <= 0:
            return _never(gate, f"a perplexity ratio of {limit:g} does not exist", n)
        return Foresight(gate.id, n, None, True, None)
    binary = metric in RATES
    if binary and gate.scale == "absolute":

        def best(items: int) -> bool:
            return bounds.tango_bound(0, 0, items, alpha, margin=limit).high <= limit

        if not best(n):
            return _impossible(gate, n, smallest(best, n) if limit > 0 else None)
    spread = math.sqrt(DISCORDANT) if binary else SPREAD
    drop = limit - (z(alpha) + z(1 - POWER)) * spread / math.sqrt(n)
    assumed = (
        f"{DISCORDANT:.0%} of items differ between the arms"
        if binary
        else f"differences with standard deviation {SPREAD}"
    )
    return Foresight(gate.id, n, drop, True, None, assumed)


def _percentile(gate: GateSpec, n: int, alpha: float) -> Foresight:
    match = PERCENTILE.fullmatch(gate.metric)
    share = float(match["percent"]) / 100 if match else 0.5
    needed = math.ceil(math.log(alpha) / math.log(share)) if 0 < share < 1 else 1
    if n < needed:
        return _impossible(gate, n, needed)
    return Foresight(gate.id, n, None, True, None)


def _mean(gate: GateSpec, metric: str, n: int, alpha: float) -> Foresight:
    op, value = gate.limit
    share = metric in ("token_f1", "json_fields", "macro_f1") or metric.startswith("rouge")
    if share and not (0 < value < 1) and op in (">=", ">") and value >= 1:
        return _impossible(gate, n, None)
    if not share:
        return Foresight(gate.id, n, None, True, None)
    reach = (z(alpha) + z(1 - POWER)) * SPREAD / math.sqrt(n)
    seen = value + reach if op in (">=", ">") else value - reach
    return Foresight(gate.id, n, seen if 0 <= seen <= 1 else None, True, None,
                     f"scores with standard deviation {SPREAD}")  # fmt: skip


def _is_paired(gate: GateSpec) -> bool:
    return gate.compare is not None or gate.metric in ("capability_drop", "perplexity_ratio")


def _reads(gate: GateSpec) -> str:
    if gate.is_judged:
        return gate.metric
    if PERCENTILE.fullmatch(gate.metric):
        return "latency_ms"
    return READS.get(gate.metric, gate.metric)


def _impossible(gate: GateSpec, n: int, needed: int | None) -> Foresight:
    op, value = gate.limit
    best = "every answer right" if op in (">=", ">") else "not a single failure"
    more = f"; needs {needed} items, has {n}" if needed else "; no number of items is enough"
    claim = f"{gate.metric} {op} {value:g}"
    return _never(gate, f"{claim} cannot be reached with n={n}, even with {best}{more}", n)


def _never(gate: GateSpec, problem: str, n: int = 0) -> Foresight:
    return Foresight(gate.id, n, None, False, problem)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(name for name in names if "/" not in name)) or "none"
