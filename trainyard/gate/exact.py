"""Exact error rates of approximate rules, and the critical values that keep them.

Wilson's and Tango's bounds rest on a normal approximation. At small n or few discordant pairs they
pass a model that sits on the limit more often than alpha (Tango with n 133, margin 0.02: 6.8 %).
Here the rate is computed over all outcomes instead of assumed.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, betainc, gammaln, ndtri

Floats = NDArray[np.float64]
LARGEST = 5_000
"""Pairs above which the approximation is taken as it is: its size is then at most 0.0502."""


def wilson_size(n: int, alpha: float, *, op: str, value: float) -> float:
    """Probability that Wilson's bound passes when the true rate equals the limit `value`."""
    if not 0 < value < 1:
        return 0.0
    reach = -float(ndtri(alpha)) * math.sqrt(n * value * (1 - value))
    if op in (">=", ">"):
        least = math.ceil(n * value + reach - 1e-9)
        return float(bdtrc(least - 1, n, value)) if least <= n else 0.0
    most = math.floor(n * value - reach + 1e-9)
    return float(bdtr(most, n, value)) if most >= 0 else 0.0


@lru_cache(maxsize=256)
def tango_critical(n: int, margin: float, alpha: float) -> float:
    """Smallest critical value, from the normal quantile up, whose exact size is at most alpha.

    The size is the largest probability, over all shares of discordant pairs, that a candidate
    worse by exactly `margin` passes (unconditional test, as Lloyd and Moldovan 2008, Stat Med
    27:3540, with the nuisance parameter maximised out).
    """
    start = -float(ndtri(alpha))
    if n > LARGEST or not 0 <= margin < 1:
        return start
    low, high = start, start
    while tango_size(n, margin, high) > alpha:
        low, high = high, high + 0.1
    for _ in range(8 if high > start else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if tango_size(n, margin, middle) > alpha else (low, middle)
    return high


def tango_size(n: int, margin: float, critical: float) -> float:
    """Largest probability of Tango's statistic >= `critical` when the drop equals `margin`."""
    losses = np.arange(n + 1, dtype=float)
    wins = _fewest_wins(losses, n, margin, critical)
    possible = wins + losses <= n
    losses, wins = losses[possible], wins[possible]
    if not len(losses):
        return 0.0
    shares = margin + (1 - margin) * np.linspace(0, 1, 60)[:-1] ** 2
    return max(
        _probability(losses, wins, n, (share + margin) / 2, (share - margin) / 2)
        for share in shares.tolist()
    )


def tango_power(n: int, margin: float, alpha: float, *, discordant: float, drop: float) -> float:
    """Probability that a candidate with this true drop passes, over all outcomes."""
    losses = np.arange(n + 1, dtype=float)
    wins = _fewest_wins(losses, n, margin, tango_critical(n, margin, alpha))
    possible = wins + losses <= n
    lose, win = (discordant + drop) / 2, (discordant - drop) / 2
    return _probability(losses[possible], wins[possible], n, lose, win)


def _probability(losses: Floats, wins: Floats, n: int, lose: float, win: float) -> float:
    """P(wins >= `wins` at each number of losses), pairs being lost and won with these rates."""
    if lose <= 0:
        return 0.0
    logs = gammaln(n + 1) - gammaln(losses + 1) - gammaln(n - losses + 1)
    logs = logs + losses * math.log(lose) + (n - losses) * math.log(max(1 - lose, 1e-300))
    likely = logs > -40
    losses, wins, logs = losses[likely], wins[likely], logs[likely]
    given = min(win / max(1 - lose, 1e-300), 1.0)
    # P(X >= w) of a binomial by its beta integral, as scipy's bdtrc takes whole numbers only
    some = np.maximum(wins, 1)
    tail = np.where(wins <= 0, 1.0, betainc(some, n - losses - some + 1, given))
    return float(np.sum(np.exp(logs) * tail))


def _fewest_wins(losses: Floats, n: int, margin: float, critical: float) -> Floats:
    """Fewest wins that pass, per number of losses; n + 1 where none do."""
    low, high = np.zeros_like(losses), n - losses + 1
    while np.any(low < high):
        middle = np.floor((low + high) / 2)
        passes = _statistic(middle, losses, n, margin) >= critical
        high = np.where(passes & (low < high), middle, high)
        low = np.where(~passes & (low < high), middle + 1, low)
    return np.where(low > n - losses, n + 1, low)


def _statistic(wins: Floats, losses: Floats, n: int, margin: float) -> Floats:
    """Tango's statistic of H0: difference = -margin, on arrays (see intervals.tango_statistic)."""
    difference = -margin
    linear = -wins - losses + (2 * n - wins + losses) * difference
    constant = -losses * difference * (1 - difference)
    root = np.sqrt(np.maximum(linear * linear - 8 * n * constant, 0))
    nuisance = np.maximum((root - linear) / (4 * n), max(0.0, -difference))
    spread = n * (2 * nuisance + difference * (1 - difference))
    gap = wins - losses - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        value = gap / np.sqrt(np.maximum(spread, 0))
    flat = spread <= 1e-15
    return np.where(flat, np.where(np.abs(gap) < 1e-12, 0.0, np.copysign(np.inf, gap)), value)
