"""How long a canary will take, and how soon it would find what is wrong, before it begins. Pure."""

import math
from collections.abc import Iterator

from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import Canary, DeploySpec
from trainyard.rollout.verdict import ODDS, SHARES, SLOW

_CHAMPION_ERRORS = 0.005
# shares beyond the champion's median when a lognormal latency of sigma 0.5 grows by 1.3
_SLOW_CHAMPION, _SLOW_CANARY = 0.5, 0.7


class Foreseen(Frozen):
    """One step at the expected traffic; all times in seconds."""

    step: str
    canary_requests_per_s: float
    least_s: float
    """Until `min_requests` users' requests reached the canary: no step ends well before."""

    planned_s: float
    """Until the planned sample, at which a healthy canary goes on at the latest."""

    errors_20_pct_s: float
    """Until an abort, about, if the canary fails one request in five."""

    latency_13_s: float
    """Until an abort, about, if the canary takes 1.3 times as long."""

    enough: bool
    """Whether users alone bring the least evidence before `step_timeout_s`."""


def foresee(spec: DeploySpec) -> tuple[Foreseen, ...]:
    """Each step of the canary at `expected_requests_per_s`; nothing without one of the two."""
    if not isinstance(spec.strategy, Canary) or spec.expected_requests_per_s is None:
        return ()
    return tuple(_steps(spec.strategy, spec.expected_requests_per_s))


def _steps(strategy: Canary, rate: float) -> Iterator[Foreseen]:
    for weight in strategy.steps:
        canary = rate * weight / 100
        yield Foreseen(
            step=f"{weight:g} %",
            canary_requests_per_s=canary,
            least_s=strategy.min_requests / canary,
            planned_s=strategy.requests / canary,
            errors_20_pct_s=_until_abort(strategy, weight, rate, "failed", 0.2, _CHAMPION_ERRORS),
            latency_13_s=_until_abort(
                strategy, weight, rate, SLOW[0], _SLOW_CANARY, _SLOW_CHAMPION
            ),
            enough=strategy.min_requests / canary <= strategy.step_timeout_s,
        )


def _until_abort(
    strategy: Canary, weight: float, rate: float, outcome: str, mine: float, its: float
) -> float:
    """Until the outcome's part of the e-value passes 1/alpha; fits the bench within a factor of 2.

    Each canary request, with the champion's beside it, gains their divergence from the common rate.
    """
    if outcome in SLOW:
        odds = strategy.latency_tolerance * its / (1 - its)
        its = odds / (1 + odds)
    share = weight / 100
    common = share * mine + (1 - share) * its
    gain = _divergence(mine, common) + (1 - share) / share * _divergence(its, common)
    needed = math.log(len(ODDS) / SHARES[outcome] / strategy.alpha) / gain
    return math.ceil(needed / (rate * share) / strategy.look_s) * strategy.look_s


def _divergence(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
