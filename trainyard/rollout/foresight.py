"""How long a canary will take, and how soon it would find what is wrong, before it begins. Pure."""

import math
from collections.abc import Iterator

from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import Canary, DeploySpec
from trainyard.rollout.verdict import OUTCOMES

# nats the bettor pays to learn the rates; fits bench/rollout_verdict.py within a factor of 2
_LEARNING = 3.0
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
            errors_20_pct_s=_until_abort(strategy, canary, 0.2, _CHAMPION_ERRORS),
            latency_13_s=_until_abort(strategy, canary, _SLOW_CANARY, _SLOW_CHAMPION),
            enough=strategy.min_requests / canary <= strategy.step_timeout_s,
        )


def _until_abort(strategy: Canary, canary_per_s: float, mine: float, its: float) -> float:
    """Until the mean e-value passes 1/alpha, at the gain of one canary request: KL(mine || its)."""
    gain = mine * math.log(mine / its) + (1 - mine) * math.log((1 - mine) / (1 - its))
    needed = (math.log(len(OUTCOMES) / strategy.alpha) + _LEARNING) / gain
    # the first look only learns: one does not bet on what one has not seen
    looks = math.ceil(needed / canary_per_s / strategy.look_s) + 1
    return looks * strategy.look_s
