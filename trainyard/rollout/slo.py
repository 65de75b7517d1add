"""Service level objectives: does a variant keep them, and how fast does it burn its error budget?

Relative tests cannot see what champion and candidate do equally badly; these limits are absolute.
Nothing here reads a clock or a network.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pydantic import Field

from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import SloSpec
from trainyard.rollout.betting import Capital
from trainyard.rollout.verdict import Outcome, Verdict


class Objective(NamedTuple):
    name: str
    budget: float
    """Share of answers that may be bad."""

    is_bad: Callable[[Outcome], bool]


def objectives(spec: SloSpec) -> list[Objective]:
    found = [Objective("availability", 1 - spec.availability, lambda o: o.failed)]
    limit = spec.latency_s
    if limit is not None:
        late = Objective(
            f"latency within {limit:g} s",
            1 - spec.latency_share,
            lambda o: o.failed or o.seconds > limit,
        )
        found.append(late)
    return found


class Tally(Frozen):
    """How one variant has kept one objective."""

    n: int = 0
    bad: int = 0
    capital: Capital = Capital()
    """Of a bettor against "the share of bad answers is within the budget"."""

    @property
    def rate(self) -> float:
        return self.bad / self.n if self.n else 0.0


class Kept(Frozen):
    """Tallies of both variants by objective, since the rollout began."""

    canary: dict[str, Tally] = Field(default_factory=dict)
    champion: dict[str, Tally] = Field(default_factory=dict)

    def take(self, outcomes: Iterable[Outcome], spec: SloSpec) -> "Kept":
        every = list(outcomes)
        return Kept(
            canary=_add(self.canary, [o for o in every if o.canary], spec),
            champion=_add(self.champion, [o for o in every if not o.canary], spec),
        )


def _add(tallies: dict[str, Tally], outcomes: Sequence[Outcome], spec: SloSpec) -> dict[str, Tally]:
    found = dict(tallies)
    for objective in objectives(spec):
        old = found.get(objective.name, Tally())
        bad = [float(objective.is_bad(o)) for o in outcomes]
        found[objective.name] = Tally(
            n=old.n + len(bad),
            bad=old.bad + int(sum(bad)),
            capital=old.capital.take(bad, objective.budget),
        )
    return found


def hold(found: Verdict, kept: Kept, spec: SloSpec, alpha: float) -> Verdict:
    """What is left of the relative verdict `found` once both variants are held to the objectives.

    A candidate that breaks one is aborted, whether or not the champion breaks it as well; one that
    has too few answers, or is past its budget without proof, waits. A champion that breaks one by
    itself is named in the reason and holds nobody up.
    """
    if found.decision == "abort":
        return found
    every = objectives(spec)
    crossing = len(every) / alpha
    for objective in every:
        mine = kept.canary.get(objective.name, Tally())
        if mine.n >= spec.min_requests and mine.capital.e_value > crossing:
            its = kept.champion.get(objective.name, Tally())
            return Verdict(
                decision="abort",
                reason=f"the candidate breaks its objective: {_shown(objective, mine)}; "
                f"champion {its.bad} of {its.n}; e-value {mine.capital.e_value:.3g} is past "
                f"{crossing:g}",
                e_value=mine.capital.e_value,
                metric=objective.name,
            )
    notes = [
        f"the champion itself breaks its objective: {_shown(objective, its)}"
        for objective in every
        if (its := kept.champion.get(objective.name, Tally())).n >= spec.min_requests
        and its.capital.e_value > crossing
    ]
    decision, reasons = found.decision, [found.reason, *notes]
    if decision == "go_on":
        missing = [m for objective in every if (m := _missing(objective, kept, spec))]
        if missing:
            decision, reasons = "wait", [*missing, *reasons]
    return found.model_copy(update={"decision": decision, "reason": "; ".join(reasons)})


def _missing(objective: Objective, kept: Kept, spec: SloSpec) -> str:
    mine = kept.canary.get(objective.name, Tally())
    if mine.n < spec.min_requests:
        return f"{objective.name} wants {spec.min_requests} answers, there are {mine.n}"
    return "" if mine.rate <= objective.budget else _shown(objective, mine)


def _shown(objective: Objective, tally: Tally) -> str:
    return (
        f"{objective.name}: {tally.bad} of {tally.n} answers bad ({tally.rate:.2%}), "
        f"budget {objective.budget:.2%}"
    )


class Window(NamedTuple):
    """An alarm: the budget burns `burn` times too fast, over the long and still over the short."""

    long_s: float
    short_s: float
    burn: float


PAGE = (Window(3600, 300, 14.4), Window(6 * 3600, 1800, 6.0))
"""What pages somebody by Google's SRE workbook, chapter 5, table 5-8: 2 % of a 30-day budget within
an hour, 5 % within six. Its ticket, 10 % within three days, needs no rollback: it is an alarm of
deployments/monitoring/rules/serving.yml."""


class Look(NamedTuple):
    """Answers between two looks."""

    at: float
    """Unix time in seconds."""

    n: int
    bad: int


def burn_rate(bad: int, n: int, budget: float) -> float:
    """How many times too fast the budget is spent: 1 spends it within its period."""
    return bad / n / budget if n else 0.0


def alarm(
    looks: Sequence[Look],
    now: float,
    objective: Objective,
    least: int,
    windows: Sequence[Window] = PAGE,
) -> str | None:
    """Return what rings, or None. Windows reach back as far as `looks` do.

    Needs `least` answers in the long window; the short one lets it ring no longer than it burns.
    """
    for window in windows:
        n, bad = _within(looks, now - window.long_s)
        short_n, short_bad = _within(looks, now - window.short_s)
        long_burn = burn_rate(bad, n, objective.budget)
        short_burn = burn_rate(short_bad, short_n, objective.budget)
        if n >= least and min(long_burn, short_burn) >= window.burn:
            return (
                f"{objective.name}: {bad} of {n} answers bad, the budget of "
                f"{objective.budget:.2%} burns {long_burn:.3g} times too fast over "
                f"{window.long_s / 3600:g} h and {short_burn:.3g} times over "
                f"{window.short_s / 60:g} min, limit {window.burn:g}"
            )
    return None


def _within(looks: Iterable[Look], since: float) -> tuple[int, int]:
    inside = [look for look in looks if look.at > since]
    return sum(look.n for look in inside), sum(look.bad for look in inside)
