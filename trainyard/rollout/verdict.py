"""May the canary go on? Hard guards first, then a test that stays valid however often one looks.

Champion and canary answer at the same time, in blocks. For each binary outcome (failed, slower
than a cut-point frozen from the champion, flagged as bad) a bettor against "the canary is no worse"
knows how many answers of a block have it, and bets on how many of these are the canary's: the
e-process of ter Schure, Perez-Ortiz, Ly & Grunwald (arXiv:2011.06931), whose null is Fisher's
hypergeometric law. What both variants share, load above all, drops out of it. It departs from them
in three ways: the capital is the mean over several odds ratios; for latency the null allows the
canary small waves of its own; and a crossing counts only past a minimum effect. The last two make
it slower to abort, never faster. Nothing here reads a clock or a network.
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

ODDS = (1.7, 2.3, 4.0, 10.0, 40.0)
"""Odds ratios that the bettor plays on, with equal shares of the capital."""

SHARES = {
    "failed": 0.15,
    **dict.fromkeys(FLAGS, 0.025),
    **dict(zip(SLOW, (0.35, 0.15, 0.1, 0.1), strict=True)),
}
"""Weight of each outcome in the mean of the e-values."""

_BASELINE = 30
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
    """Capital of the bettor on one outcome, and what it has seen."""

    canary_hits: float = 0
    canary_n: float = 0
    champion_hits: float = 0
    champion_n: float = 0
    tolerated: float = 0
    """Canary hits that would be none if the canary were faster by the tolerated factor."""

    logs: tuple[float, ...] = (0.0,) * len(ODDS)

    def take(
        self, xc: int, nc: int, xs: int, ns: int, tolerated: int = 0, odds: float = 1.0
    ) -> "Bet":
        """Bet on one block, against an odds ratio of `odds` at most."""
        null, *bets = hypergeometric(xc, xc + xs, nc, ns, (odds, *ODDS))
        return Bet(
            canary_hits=self.canary_hits + xc,
            canary_n=self.canary_n + nc,
            champion_hits=self.champion_hits + xs,
            champion_n=self.champion_n + ns,
            tolerated=self.tolerated + tolerated,
            logs=tuple(log + bet - null for log, bet in zip(self.logs, bets, strict=True)),
        )

    @property
    def rates(self) -> tuple[float, float]:
        return _rate(self.canary_hits, self.canary_n), _rate(self.champion_hits, self.champion_n)


def hypergeometric(k: int, hits: int, nc: int, ns: int, odds: Sequence[float]) -> tuple[float, ...]:
    """Log-probability that `k` of `hits` are among the `nc` answers of the canary, by odds ratio.

    Fisher's noncentral hypergeometric law, the champion having `ns` answers.
    """
    low, high = max(0, hits - ns), min(nc, hits)
    weights = [0.0]
    for i in range(low, high):
        ways = (nc - i) * (hits - i) / ((i + 1) * (ns - hits + i + 1))
        weights.append(weights[-1] + math.log(ways))
    found = []
    for ratio in odds:
        logs = [weight + i * math.log(ratio) for i, weight in enumerate(weights)]
        top = max(logs)
        found.append(logs[k - low] - top - math.log(sum(math.exp(log - top) for log in logs)))
    return tuple(found)


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
    """Add one look's answers from before the rollout: they give the cut-points."""
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
        for name, cut in zip(SLOW, cuts, strict=True):
            bets[name] = bets.get(name, Bet()).take(
                sum(s > cut for s in fast_c),
                len(fast_c),
                sum(s > cut for s in fast_s),
                len(fast_s),
                sum(s > cut * rules.latency_tolerance for s in fast_c),
                # within this odds ratio are waves of the canary's own, with an sd of 5 %
                rules.latency_tolerance,
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
        logs = [0.0] * len(ODDS)
        for stratum in (evidence.live, evidence.replay):
            bet = stratum.bets.get(name)
            if bet is not None:
                logs = [log + more for log, more in zip(logs, bet.logs, strict=True)]
        value = sum(math.exp(min(600.0, log)) for log in logs) / len(logs)
        # never more than 1 unless the effect matters: smaller only, so the mean stays an e-value
        value = value if _matters(evidence, name, rules) else min(1.0, value)
        values[name] = SHARES[name] * value
    worst = max(values, key=values.__getitem__)
    return sum(values.values()), worst


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
