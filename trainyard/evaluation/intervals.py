"""Confidence intervals and standard errors, each by its published formula.

`confidence` is two-sided throughout; a one-sided bound at error rate alpha is the end of the
interval at confidence 1 - 2 alpha. Arguments out of range raise InputError.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
from scipy.special import betaincinv

from trainyard.errors import InputError


def quantile(confidence: float) -> float:
    """Normal quantile z of a two-sided interval: 0.95 gives 1.96."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence ({confidence}) must lie between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927), as (low, high) in [0, 1].

    `successes` may be fractional: for scores in [0, 1] with this sum the interval stays valid,
    because their variance is at most mean (1 - mean).
    """
    _check_count(successes, n)
    z = quantile(confidence)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(max(rate * (1 - rate), 0) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if successes <= 0 else max(low, 0.0)), (1.0 if successes >= n else min(high, 1.0))


def clopper_pearson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate (Clopper and Pearson 1934), as (low, high) in [0, 1].

    By its beta quantiles, so that an effective sample size may be fractional.
    """
    _check_count(successes, n)
    tail = (1 - confidence) / 2
    quantile(confidence)
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a paired difference of rates (Tango 1998, Stat Med 17:891), in [-1, 1].

    Of `n` pairs, `b` have the candidate right and the reference wrong, `c` the reverse; the
    interval is that of candidate - reference = (b - c) / n.
    """
    _check_pairs(b, c, n)
    z = quantile(confidence)
    centre = (b - c) / n

    def distance(difference: float) -> float:
        return tango_statistic(b, c, n, difference)

    low = -1.0 if centre <= -1 else _crossing(distance, z, -1.0, centre)
    high = 1.0 if centre >= 1 else _crossing(distance, -z, centre, 1.0)
    return low, high


def tango_statistic(b: float, c: float, n: float, difference: float) -> float:
    """Tango's score statistic of H0: candidate - reference = `difference`; N(0, 1) under H0."""
    gap = b - c - n * difference
    spread = n * (2 * tango_nuisance(b, c, n, difference) + difference * (1 - difference))
    if spread <= 1e-15:
        return 0.0 if abs(gap) < 1e-12 else math.copysign(math.inf, gap)
    return gap / math.sqrt(spread)


def tango_nuisance(b: float, c: float, n: float, difference: float) -> float:
    """Share of pairs of kind `c` that is most likely under H0 (Tango 1998, equation 9)."""
    square = 2 * n
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 4 * square * constant, 0.0))
    return max((root - linear) / (2 * square), 0.0, -difference)


def newcombe_paired(
    a: int, b: int, c: int, d: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Square-and-add interval of a paired difference (Newcombe 1998, Stat Med 17:2635, method 10).

    `a` pairs have both right, `b` only the first, `c` only the second, `d` neither; the interval
    is that of first - second = (b - c) / n, in [-1, 1].
    """
    n = a + b + c + d
    _check_pairs(b, c, n)
    if min(a, d) < 0:
        raise InputError(f"counts ({a}, {b}, {c}, {d}) must not be negative")
    first, second = (a + b) / n, (a + c) / n
    low_1, high_1 = wilson(a + b, n, confidence)
    low_2, high_2 = wilson(a + c, n, confidence)
    phi = _newcombe_phi(a, b, c, d)
    down = _square_and_add(first - low_1, high_2 - second, phi)
    up = _square_and_add(second - low_2, high_1 - first, phi)
    difference = first - second
    return max(difference - down, -1.0), min(difference + up, 1.0)


def clustered_se(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean when values in one cluster depend on each other.

    sqrt(sum over clusters of (sum of deviations)^2) / n (Miller 2024, arXiv 2411.00640, section
    2.2), without a small-sample factor.
    """
    if len(values) != len(clusters) or not len(values):
        raise InputError(
            f"clustered_se needs one cluster per value, got {len(values)} values and "
            f"{len(clusters)} clusters"
        )
    x = np.asarray(values, dtype=float)
    _, index = np.unique([repr(cluster) for cluster in clusters], return_inverse=True)
    sums = np.bincount(index, weights=x - x.mean())
    return float(np.sqrt(np.sum(sums**2)) / len(x))


def ppi_mean(
    labels: Sequence[float],
    judged: Sequence[float],
    judged_all: Sequence[float],
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of a mean from few labels and many judged items (PPI++, arXiv 2311.01453).

    `labels` and `judged` are the human's and the judge's score of the same labelled items;
    `judged_all` holds the judge's scores of the items without a label. Power tuning is clipped to
    [0, 1]: a judge that says nothing about the labels gets no weight.
    """
    theta, error = ppi_estimate(labels, judged, judged_all)
    z = quantile(confidence)
    return theta - z * error, theta + z * error


def ppi_estimate(
    labels: Sequence[float], judged: Sequence[float], judged_all: Sequence[float]
) -> tuple[float, float]:
    """Estimate and standard error behind `ppi_mean`."""
    y, f, rest = (np.asarray(x, dtype=float) for x in (labels, judged, judged_all))
    n, many = len(y), len(rest)
    if n < 2 or len(f) != n or many < 2:
        raise InputError(
            f"ppi_mean needs at least 2 labels with a judgement each and 2 judged items, got "
            f"{n} labels, {len(f)} judgements of them and {many} judged items"
        )
    spread = float(np.var(np.concatenate([f, rest]), ddof=1))
    together = float(np.cov(y, f, ddof=1)[0, 1])
    weight = float(np.clip(together / ((1 + n / many) * spread), 0, 1)) if spread > 0 else 0.0
    residual = y - weight * f
    theta = weight * float(rest.mean()) + float(residual.mean())
    variance = weight**2 * float(rest.var(ddof=1)) / many + float(residual.var(ddof=1)) / n
    return theta, math.sqrt(variance)


def _newcombe_phi(a: int, b: int, c: int, d: int) -> float:
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    n = a + b + c + d
    product = a * d - b * c
    corrected = max(product - n / 2, 0) if product > 0 else product
    return corrected / math.sqrt(margins)


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function reaches `level`, by bisection to the last bit."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _check_count(successes: float, n: float) -> None:
    if n < 1:
        raise InputError(f"no rate from {n} items: did the suite run?")
    if not 0 <= successes <= n:
        raise InputError(f"successes ({successes}) must lie between 0 and n ({n})")


def _check_pairs(b: int, c: int, n: int) -> None:
    if n < 1:
        raise InputError(f"no difference from {n} pairs: did both arms run?")
    if min(b, c) < 0 or b + c > n:
        raise InputError(f"discordant pairs ({b} + {c}) must lie between 0 and n ({n})")
