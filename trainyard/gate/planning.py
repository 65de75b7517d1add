"""How many items a gate needs, and what it can see with those it has."""

import math
from collections.abc import Callable

from scipy.special import betaincinv, ndtri

from trainyard.gate.bounds import RESERVE
from trainyard.gate.exact import tango_power

POWER = 0.8
MOST = 10_000_000


def z(alpha: float) -> float:
    return float(-ndtri(alpha))


def items_for_rate(
    rate: float, value: float, alpha: float, power: float = POWER, *, op: str = ">="
) -> int | None:
    """Items with which a true `rate` passes the limit `value` with probability `power`.

    Normal approximation (Fleiss 1981, section 2.2). None when the rate is on the wrong side.
    """
    if (rate - value) * (1 if op in (">=", ">") else -1) <= 0:
        return None
    root = z(alpha) * math.sqrt(max(value * (1 - value), 0))
    root += z(1 - power) * math.sqrt(max(rate * (1 - rate), 0))
    return max(2, math.ceil((root / (rate - value)) ** 2))


def items_for_events(events: int, value: float, alpha: float) -> int | None:
    """Smallest n at which `events` failures still prove a rate of at most `value`, exactly.

    0 events at 0.01 and alpha 0.05: 299.
    """
    if not 0 < value < 1:
        return None
    return smallest(
        lambda n: float(betaincinv(events + 1, n - events, 1 - alpha)) <= value, events + 1
    )


def items_for_drop(margin: float, discordant: float, alpha: float, power: float = POWER) -> int:
    """Pairs with which an equal model passes a drop gate on 0/1 scores, by exact power.

    Starts from (z_alpha + z_beta)^2 discordant / margin^2, which is too small for few discordant
    pairs, and adds 2 % until the exact power is there.
    """
    n = math.ceil((z(alpha) + z(1 - power)) ** 2 * discordant / margin**2)
    while n < MOST and tango_power(n, margin, alpha, discordant=discordant, drop=0.0) < power:
        n = math.ceil(n * 1.02)
    return n


def items_for_mean(gap: float, sd: float, alpha: float, power: float = POWER) -> int | None:
    """Items with which a mean `gap` away from the limit, on its good side, passes."""
    alpha *= RESERVE
    if gap <= 0 or not math.isfinite(gap) or not math.isfinite(sd):
        return None
    return 2 + math.ceil(((z(alpha) + z(1 - power)) * sd / gap) ** 2)


def smallest(holds: Callable[[int], bool], start: int) -> int | None:
    """Smallest n >= start at which a condition holds that keeps holding afterwards."""
    high = max(start, 1)
    while not holds(high):
        high *= 2
        if high > MOST:
            return None
    low = max(start, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
