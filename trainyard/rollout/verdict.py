"""May the canary go on? Hard guards first, then a test that stays valid however often one looks.

Champion and canary answer at the same time, in blocks. For each binary outcome (failed, slower
than a cut-point frozen from the champion, flagged as bad) a bettor against "the canary is no worse"
gains prod p_c(y) p_s(y) / p_0(y) with rates learned from earlier blocks only: the two-sample
e-process of Turner, Ly & Grunwald (arXiv:2106.02693). It departs from it in three ways: it bets
only while the canary looks worse; gains are damped by the design effect (Kish 1965) of the
champion's own blocks, since latencies come in waves; and a crossing counts only past a minimum
effect. All three make it slower to abort, never faster. Nothing here reads a clock or a network.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from pydantic import Field

from trainyard.recipe.base import Frozen

Source = Literal["live", "replay"]

FLAGS = ("empty", "length", "format", "refusal", "repetition", "language")
QUANTILES = (0.5, 0.75, 0.9, 0.99)
SLOW = tuple(f"slower than q{round(100 * q)}" for q in QUANTILES)
OUTCOMES = ("failed", *FLAGS, *SLOW)

CONSECUTIVE = 5
"""Failed or empty answers in a row that end a canary at once."""

_BASELINE = 30
_PRIOR_WEIGHT = 20.0
_PRIOR_RATE = 0.005
_SAMPLES = 5


class Outcome(NamedTuple):
    """One answer of one variant."""

    canary: bool
    failed: bool
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    source: Source = "live"
    request_id: str = ""


class Rules(NamedTuple):
    """What a step must show; see recipe/deploy.py for each."""

    min_requests: int
    requests: int
    margin: float
    alpha: float
    latency_tolerance: float


class Verdict(Frozen):
    decision: Literal["abort", "go_on", "wait"]
    reason: str
    """Carries the figures: metric, both rates, n, e-value."""

    e_value: float = 1.0
    metric: str | None = None
    samples: tuple[str, ...] = ()
    """Request ids of canary answers that show it."""


class Bet(Frozen):
    """Capital of the bettor on one outcome, and the counts it learns from."""

    prior: float = _PRIOR_RATE
    canary_hits: float = 0
    canary_n: float = 0
    champion_hits: float = 0
    champion_n: float = 0
    tolerated: float = 0
    """Canary hits that would be none if the canary were faster by the tolerated factor."""

    log_e: float = 0
    blocks: int = 0
    sum_n2: float = 0
    sum_x2_over_n: float = 0
    last_rate: float | None = None
    steps: int = 0
    sum_step2: float = 0
    """Of squared differences between the rates of neighbouring champion blocks."""

    def take(self, xc: int, nc: int, xs: int, ns: int, tolerated: int = 0) -> "Bet":
        """Bet on one block with what was known before it, then learn from it."""
        a = _PRIOR_WEIGHT * self.prior
        tc = (self.canary_hits + a) / (self.canary_n + _PRIOR_WEIGHT)
        ts = (self.champion_hits + a) / (self.champion_n + _PRIOR_WEIGHT)
        gain = 0.0
        if tc > ts:
            t0 = (nc * tc + ns * ts) / (nc + ns)
            gain = (
                xc * math.log(tc / t0)
                + (nc - xc) * math.log((1 - tc) / (1 - t0))
                + xs * math.log(ts / t0)
                + (ns - xs) * math.log((1 - ts) / (1 - t0))
            )
        return Bet(
            prior=self.prior,
            canary_hits=self.canary_hits + xc,
            canary_n=self.canary_n + nc,
            champion_hits=self.champion_hits + xs,
            champion_n=self.champion_n + ns,
            tolerated=self.tolerated + tolerated,
            log_e=self.log_e + gain / self.design_effect(nc),
            blocks=self.blocks + 1,
            sum_n2=self.sum_n2 + ns * ns,
            sum_x2_over_n=self.sum_x2_over_n + xs * xs / ns,
            last_rate=xs / ns,
            steps=self.steps + (self.last_rate is not None),
            sum_step2=self.sum_step2 + (xs / ns - (self.last_rate or xs / ns)) ** 2,
        )

    def design_effect(self, n: int) -> float:
        """How many times the variance of `n` answers exceeds that of independent ones, >= 1.

        1 + (n - 1) * rho * memory: rho is the ANOVA estimate of the intraclass correlation over the
        champion's blocks so far, memory = (1 + r) / (1 - r) for the correlation r of neighbouring
        blocks, taken from their squared differences (von Neumann 1941).
        """
        total, hits = self.champion_n, self.champion_hits
        if self.blocks < 3 or not 0 < hits < total:
            return 1.0
        within = hits / total * (1 - hits / total)
        between = (self.sum_x2_over_n - hits * hits / total) / (self.blocks - 1)
        size = (total - self.sum_n2 / total) / (self.blocks - 1)
        rho = min(1.0, max(0.0, (between - within) / (size * within)))
        if not rho:
            return 1.0
        extra = rho * within
        step = self.sum_step2 / max(1, self.steps) / 2 - within / size
        r = min(0.9, max(0.0, 1 - step / extra))
        return 1 + max(0, n - 1) * rho * (1 + r) / (1 - r)

    @property
    def rates(self) -> tuple[float, float]:
        return _rate(self.canary_hits, self.canary_n), _rate(self.champion_hits, self.champion_n)


class Stratum(Frozen):
    """Evidence from one kind of traffic; live and replayed prompts are never mixed."""

    cuts: tuple[float, ...] | None = None
    """Seconds at the champion's quantiles, frozen; None until the baseline is there."""

    baseline: tuple[float, ...] = ()
    bets: dict[str, Bet] = Field(default_factory=dict)
    pending: tuple[Outcome, ...] = ()
    """Answers of one variant that wait for some of the other."""

    log_equal: float = 0
    """Log capital of the bettor against "the canary fails more often by the margin or more"."""


class Evidence(Frozen):
    """All that was seen in a rollout; grows by `take`, is saved and read back as JSON."""

    live: Stratum = Stratum()
    replay: Stratum = Stratum()
    failures_in_a_row: int = 0
    last_failures: tuple[str, ...] = ()
    samples: dict[str, tuple[str, ...]] = Field(default_factory=dict)


def learn(evidence: Evidence, champion: Sequence[Outcome], rules: Rules) -> Evidence:
    """Add one look's answers from before the rollout: cut-points and the champion's own waves."""
    live = _bet(evidence.live, [], champion, rules) if champion else evidence.live
    return evidence.model_copy(update={"live": live})


def take(evidence: Evidence, outcomes: Sequence[Outcome], rules: Rules) -> Evidence:
    """Add one look's answers, in the order in which they came."""
    row, last = evidence.failures_in_a_row, list(evidence.last_failures)
    samples = dict(evidence.samples)
    for outcome in outcomes:
        if not outcome.canary:
            continue
        if outcome.failed or "empty" in outcome.flags:
            row, last = row + 1, [*last, outcome.request_id][-_SAMPLES:]
        else:
            row, last = 0, []
        for name in (*(("failed",) if outcome.failed else ()), *outcome.flags):
            samples[name] = (*samples.get(name, ()), outcome.request_id)[-_SAMPLES:]
    return Evidence(
        live=_extend(evidence.live, [o for o in outcomes if o.source == "live"], rules),
        replay=_extend(evidence.replay, [o for o in outcomes if o.source == "replay"], rules),
        failures_in_a_row=row,
        last_failures=tuple(last),
        samples=samples,
    )


def judge(evidence: Evidence, rules: Rules, canary_requests: int) -> Verdict:
    """Judge a step that has `canary_requests` answers of the canary so far."""
    if evidence.failures_in_a_row >= CONSECUTIVE:
        return Verdict(
            decision="abort",
            reason=f"{evidence.failures_in_a_row} failed or empty answers of the canary in a row",
            e_value=_total(evidence, rules)[0],
            metric="failed",
            samples=evidence.last_failures,
        )
    total, worst = _total(evidence, rules)
    shown = f"e-value {total:.3g}"
    if total > 1 / rules.alpha:
        return Verdict(
            decision="abort",
            reason=f"{_describe(evidence, worst)}; {shown} is past {1 / rules.alpha:g}",
            e_value=total,
            metric=worst,
            samples=evidence.samples.get(worst, ()),
        )
    progress = f"{canary_requests} canary answers"
    if canary_requests < rules.min_requests:
        reason = f"{progress} of at least {rules.min_requests}; {shown}"
        return Verdict(decision="wait", reason=reason, e_value=total)
    excluded = math.exp(min(600.0, evidence.live.log_equal + evidence.replay.log_equal))
    if excluded > 1 / rules.alpha:
        reason = f"{progress} exclude {rules.margin:.0%} more failures; {shown}"
        return Verdict(decision="go_on", reason=reason, e_value=total)
    if canary_requests >= rules.requests:
        reason = f"planned sample of {rules.requests} reached without breach; {shown}"
        return Verdict(decision="go_on", reason=reason, e_value=total)
    reason = f"{progress} of {rules.requests}; {shown} of {1 / rules.alpha:g}"
    return Verdict(decision="wait", reason=reason, e_value=total)


def _extend(stratum: Stratum, outcomes: Iterable[Outcome], rules: Rules) -> Stratum:
    block = (*stratum.pending, *outcomes)
    canary = [o for o in block if o.canary]
    champion = [o for o in block if not o.canary]
    if not canary or not champion:
        return stratum.model_copy(update={"pending": block[-1000:]})
    return _bet(stratum, canary, champion, rules)


def _bet(
    stratum: Stratum, canary: Sequence[Outcome], champion: Sequence[Outcome], rules: Rules
) -> Stratum:
    bets = dict(stratum.bets)
    for name in ("failed", *FLAGS):
        hits = [_hit(o, name) for o in canary], [_hit(o, name) for o in champion]
        bets[name] = bets.get(name, Bet()).take(
            sum(hits[0]), len(canary), sum(hits[1]), len(champion)
        )
    fast_c = [o.seconds for o in canary if not o.failed]
    fast_s = [o.seconds for o in champion if not o.failed]
    cuts, baseline = stratum.cuts, stratum.baseline
    if cuts is None:
        baseline = (*baseline, *fast_s)
        if len(baseline) >= _BASELINE:
            cuts, baseline = freeze(baseline), ()
    elif fast_s:
        for name, quantile, cut in zip(SLOW, QUANTILES, cuts, strict=True):
            bets[name] = bets.get(name, Bet(prior=1 - quantile)).take(
                sum(s > cut for s in fast_c),
                len(fast_c),
                sum(s > cut for s in fast_s),
                len(fast_s),
                sum(s > cut * rules.latency_tolerance for s in fast_c),
            )
    return Stratum(
        cuts=cuts,
        baseline=baseline,
        bets=bets,
        log_equal=stratum.log_equal + _log_equal(canary, champion, rules.margin),
    )


def freeze(seconds: Sequence[float]) -> tuple[float, ...]:
    """Cut-points at the champion's quantiles, in seconds."""
    ordered = sorted(seconds)
    return tuple(ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in QUANTILES)


def _log_equal(canary: Sequence[Outcome], champion: Sequence[Outcome], margin: float) -> float:
    """Gain of a bet on each pair, 1 + l * (margin - difference), fair at a difference of margin.

    Waudby-Smith & Ramdas 2024, with a constant bet of 0.8 of the largest admissible one.
    """
    pairs = min(len(canary), len(champion))
    if not pairs:
        return 0.0
    size = 0.8 / (1 - margin)
    gain = 0.0
    for mine, its in zip(_chunks(canary, pairs), _chunks(champion, pairs), strict=True):
        gain += math.log(1 + size * (margin - (_bad_share(mine) - _bad_share(its))))
    return gain


def _chunks(values: Sequence[Outcome], count: int) -> Iterable[Sequence[Outcome]]:
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return (values[start:end] for start, end in pairwise(edges))


def _bad_share(outcomes: Sequence[Outcome]) -> float:
    return sum(o.failed or bool(o.flags) for o in outcomes) / len(outcomes)


def _hit(outcome: Outcome, name: str) -> bool:
    return outcome.failed if name == "failed" else name in outcome.flags


def _total(evidence: Evidence, rules: Rules) -> tuple[float, str]:
    """Mean of the e-values over all outcomes, and the outcome that weighs most."""
    values = {}
    for name in OUTCOMES:
        log_e = 0.0
        for stratum in (evidence.live, evidence.replay):
            bet = stratum.bets.get(name)
            if bet is not None:
                log_e += bet.log_e
        value = math.exp(min(600.0, log_e))
        # never more than 1 unless the effect matters: smaller only, so the mean stays an e-value
        values[name] = value if _matters(evidence, name, rules) else min(1.0, value)
    worst = max(values, key=values.__getitem__)
    return sum(values.values()) / len(values), worst


def _matters(evidence: Evidence, name: str, rules: Rules) -> bool:
    for stratum in (evidence.live, evidence.replay):
        bet = stratum.bets.get(name)
        if bet is None or not bet.canary_n or not bet.champion_n:
            continue
        canary, champion = bet.rates
        if name in SLOW:
            if bet.tolerated / bet.canary_n > champion:
                return True
        elif canary - champion > rules.margin:
            return True
    return False


def _describe(evidence: Evidence, name: str) -> str:
    parts = []
    for source, stratum in (("live", evidence.live), ("replayed", evidence.replay)):
        bet = stratum.bets.get(name)
        if bet is None or not bet.canary_n:
            continue
        canary, champion = bet.rates
        cut = ""
        if name in SLOW and stratum.cuts is not None:
            cut = f" ({stratum.cuts[SLOW.index(name)]:.3g} s)"
        parts.append(
            f"{name}{cut}: canary {canary:.1%} of {bet.canary_n:g}, "
            f"champion {champion:.1%} of {bet.champion_n:g} {source} requests"
        )
    return "; ".join(parts)


def _rate(hits: float, n: float) -> float:
    return hits / n if n else 0.0
