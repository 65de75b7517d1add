"""Confidence bounds of each kind of score, chosen so that a gate's error rate is at most alpha.

Every function returns a Bound whose `low` and `high` each hold with confidence 1 - alpha on their
own side. Units (items, or clusters of items) are independent; items in a unit need not be.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit

from trainyard.evaluation.intervals import clopper_pearson, ppi_estimate, tango, wilson
from trainyard.gate.exact import tango_critical, wilson_size

Floats = NDArray[np.float64]
RESAMPLES = 10_000
RESERVE = 0.8
"""Share of alpha that a large-sample bound may use: the rest covers its own error at small n."""
FEW = 50
"""Units below which scores in [0, 1] get Wilson's bound, which holds at any n."""
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Bound:
    estimate: float
    low: float
    high: float
    n: int
    method: str
    clusters: int | None = None
    sd: float | None = None
    """Standard deviation of one item, for planning more of them."""


def binomial(k: int, n: int, alpha: float, *, op: str, value: float, interval: str) -> Bound:
    """A rate of 0/1 scores: Wilson where its rule is right for sure, else Clopper-Pearson.

    Wilson's bound is an approximation; `wilson_size` is the exact rate at which it would pass a
    model that sits on the limit. Above alpha, and below 50 items, the exact bound decides.
    """
    method = interval
    if interval == "auto":
        fits = n >= FEW and wilson_size(n, alpha, op=op, value=value) <= alpha
        method = "wilson" if fits else "clopper_pearson"
    compute = wilson if method == "wilson" else clopper_pearson
    low, high = compute(k, n, confidence=1 - 2 * alpha)
    rate = k / n
    return Bound(rate, low, high, n, method, sd=math.sqrt(rate * (1 - rate)))


def clustered_binomial(values: Floats, clusters: NDArray[np.int64], alpha: float) -> Bound:
    """A rate of 0/1 scores in clusters: exact bound at the effective sample size.

    Korn and Graubard 1998 (Survey Methodology 24:193): the clustered standard error gives the
    number of independent items that carry as much, and Clopper-Pearson (by its beta form) is
    taken there. Without any spread the clusters are what is counted.
    """
    n, groups = len(values), int(clusters.max()) + 1
    rate = float(values.mean())
    sums = np.bincount(clusters, weights=values - rate)
    variance = float(np.sum(sums**2)) / n**2 * groups / max(groups - 1, 1)
    effective, tail = float(groups), alpha
    if 0 < rate < 1 and variance > 0 and groups > 1:
        tail = RESERVE * alpha
        shrink = (stdtrit(n - 1, 1 - tail) / stdtrit(groups - 1, 1 - tail)) ** 2
        effective = min(rate * (1 - rate) / variance * float(shrink), float(n))
    effective = max(effective, 1.0)
    low, high = clopper_pearson(rate * effective, effective, confidence=1 - 2 * tail)
    return Bound(rate, low, high, n, "clustered_clopper_pearson", groups,
                 sd=math.sqrt(rate * (1 - rate) * n / effective))  # fmt: skip


def tango_bound(b: int, c: int, n: int, alpha: float, *, margin: float) -> Bound:
    """Candidate - reference of paired 0/1 scores, exact in its error rate at the margin."""
    critical = tango_critical(n, abs(margin), alpha)
    low, high = tango(b, c, n, confidence=math.erf(critical / math.sqrt(2)))
    difference = (b - c) / n
    spread = math.sqrt(max((b + c) / n - difference**2, 0.0))
    return Bound(difference, low, high, n, "tango", sd=spread)


def mean_t(values: Floats, alpha: float) -> Bound:
    """A mean of independent scores by Student's t."""
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    if sd == 0:
        return Bound(mean, mean, mean, n, "no_spread", sd=0.0)
    half = float(stdtrit(n - 1, 1 - alpha)) * sd / math.sqrt(n)
    return Bound(mean, mean - half, mean + half, n, "t", sd=sd)


def share_mean(values: Floats, alpha: float, *, op: str, value: float) -> Bound:
    """A mean of scores in [0, 1] by the bounds of a rate, as their variance is no larger."""
    n, mean = len(values), float(values.mean())
    fits = n >= FEW and wilson_size(n, alpha, op=op, value=value) <= alpha
    compute = wilson if fits else clopper_pearson
    low, high = compute(float(values.sum()), n, confidence=1 - 2 * alpha)
    sd = float(values.std(ddof=1)) if n > 1 else None
    return Bound(mean, low, high, n, "wilson" if fits else "clopper_pearson", sd=sd)


@dataclass(frozen=True, slots=True)
class Units:
    """Independent units of one suite: `sums` of scores over `weights` (items, tokens, bytes)."""

    sums: Floats
    weights: Floats
    items: int
    clustered: bool = False

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.weights.sum())

    @property
    def variance(self) -> float:
        """Variance of the mean by linearisation of the ratio, with the factor m / (m - 1)."""
        m = len(self.sums)
        residual = self.sums - self.mean * self.weights
        return float(np.sum(residual**2)) / float(self.weights.sum()) ** 2 * m / (m - 1)


def units(values: Floats, weights: Floats, clusters: NDArray[np.int64] | None) -> Units:
    return units_of_sums(values * weights, weights, clusters)


def units_of_sums(sums: Floats, weights: Floats, clusters: NDArray[np.int64] | None) -> Units:
    """Units from numerators and denominators per item."""
    if clusters is None:
        return Units(sums, weights, len(sums))
    groups = int(clusters.max()) + 1
    over: tuple[Floats, Floats] = (np.zeros(groups), np.zeros(groups))
    np.add.at(over[0], clusters, sums)
    np.add.at(over[1], clusters, weights)
    return Units(*over, len(sums), clustered=True)


def bootstrap_mean(
    strata: list[Units],
    alpha: float,
    seed: list[int],
    *,
    limit: float = math.nan,
) -> Bound:
    """Macro-average over strata by the studentised bootstrap over units.

    Efron and Tibshirani 1993, section 12.5: t* = (mean* - mean) / se* corrects for skewness, so
    small and lopsided sets keep their error rate. Where Monte-Carlo error could decide (the limit
    is within two standard errors of the bound), ten times as many resamples are drawn.
    """
    estimate = float(np.mean([stratum.mean for stratum in strata]))
    error = math.sqrt(sum(stratum.variance for stratum in strata)) / len(strata)
    n = sum(stratum.items for stratum in strata)
    clusters = (
        sum(len(stratum.sums) for stratum in strata)
        if any(stratum.clustered for stratum in strata)
        else None
    )
    sd = error * math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(estimate)):
        return Bound(estimate, estimate, estimate, n, "no_spread", clusters, sd=0.0)
    draws = RESAMPLES
    for _ in range(2):
        t = studentised(strata, estimate, draws, seed)
        low, high = _ends(t, RESERVE * alpha, estimate, error)
        if not _undecided(t, RESERVE * alpha, estimate, error, limit):
            break
        draws *= 10
    name = "clustered_bootstrap" if clusters is not None else "bootstrap"
    return Bound(estimate, low, high, n, name, clusters, sd=sd)


def studentised(strata: list[Units], estimate: float, draws: int, seed: list[int]) -> Floats:
    """Sorted t* of `draws` resamples; equal seeds and sizes draw equal resamples."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    mean = np.zeros(draws)
    variance = np.zeros(draws)
    for stratum in strata:
        sums = resampled_sums(second_moments(stratum.sums, stratum.weights), draws, rng)
        ratio, spread = ratio_and_variance(sums.T, len(stratum.sums))
        mean += ratio
        variance += spread
    return np.sort(t_values(mean / len(strata), variance / len(strata) ** 2, estimate))


def second_moments(sums: Floats, weights: Floats) -> Floats:
    """What a resample needs of each unit, as columns: s, w, s^2, s w, w^2."""
    return np.stack([sums, weights, sums**2, sums * weights, weights**2], axis=-1)


def ratio_and_variance(moments: Floats, m: int) -> tuple[Floats, Floats]:
    """Mean and its variance from the five summed columns (first axis) of `m` units."""
    s, w, ss, sw, ww = moments
    w = np.maximum(w, 1e-300)
    ratio = s / w
    squares = np.maximum(ss - 2 * ratio * sw + ratio**2 * ww, 0.0)
    return ratio, squares / w**2 * m / (m - 1)


def t_values(mean: Floats, variance: Floats, estimate: Floats | float) -> Floats:
    """(mean* - mean) / se*; a resample without spread is infinitely far unless it is the mean."""
    error, gap = np.sqrt(variance), mean - estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        t = gap / error
    flat = error <= 1e-12 * np.maximum(1, np.abs(mean))
    far = np.where(np.abs(gap) < 1e-12, 0.0, np.copysign(np.inf, gap))
    return np.where(flat, far, t)


def resampled_sums(columns: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Column sums of `draws` resamples of the rows, drawn with replacement: (draws, columns)."""
    rows = len(columns)
    step = max(1, _CHUNK // rows)
    out = np.empty((draws, columns.shape[1]))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        index = rng.integers(0, rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        times = np.bincount(index.ravel(), minlength=count * rows).reshape(count, rows)
        out[start : start + count] = times @ columns
    return out


def corpus_bootstrap(
    stats: Floats, score: Callable[[Floats], Floats], alpha: float, seed: list[int]
) -> Bound:
    """A corpus statistic of summed item statistics by the expanded percentile bootstrap.

    Hesterberg 2015 (The American Statistician 69:371, section 4.3): the percentiles are moved out
    so that a mean would get its t interval.
    """
    n = len(stats)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    values = np.sort(score(resampled_sums(stats, RESAMPLES, rng)))
    tail = expanded_tail(n, alpha)
    low, high = np.quantile(values, [tail, 1 - tail])
    sd = float(values.std(ddof=1)) * math.sqrt(n)
    return Bound(float(score(stats.sum(axis=0))), float(low), float(high), n, "bootstrap", sd=sd)


def corrected_mean(
    labels: Floats, judged: Floats, rest: Floats, alpha: float, seed: list[int]
) -> Bound:
    """A judge's rate corrected by labels (PPI++, arXiv 2311.01453), with a bootstrap-t bound.

    `labels` and `judged` are of the same items, `rest` of those without a label. The normal bound
    of PPI++ passes a flattering judge's candidate at the limit in 10 % of releases with 100 labels,
    as its weight is fitted and the labels are lopsided; here each resample fits its own weight.
    """
    n, many = len(labels), len(rest)
    theta, error = ppi_estimate(list(labels), list(judged), list(rest))
    total = n + many
    if error <= 1e-12:
        return Bound(theta, theta, theta, total, "no_spread", sd=0.0)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    columns = np.stack([labels, judged, labels * judged, labels**2, judged**2], axis=-1)
    y, f, yf, yy, ff = resampled_sums(columns, RESAMPLES, rng).T / n
    spread = float(np.var(np.concatenate([judged, rest]), ddof=1))
    together = (yf - y * f) * n / (n - 1)
    weight = np.clip(together / ((1 + n / many) * max(spread, 1e-300)), 0, 1)
    of_rest = float(rest.var(ddof=1)) / many
    drawn = float(rest.mean()) + rng.normal(0, math.sqrt(of_rest), RESAMPLES)
    residual = yy - y**2 + weight**2 * (ff - f**2) - 2 * weight * (yf - y * f)
    variance = np.maximum(residual, 0) / (n - 1) + weight**2 * of_rest
    t = np.sort(t_values(weight * drawn + y - weight * f, variance, theta))
    low, high = _ends(t, RESERVE * alpha, theta, error)
    return Bound(theta, low, high, total, "ppi++", sd=error * math.sqrt(total))


def expanded_tail(n: int, alpha: float) -> float:
    """Share of resamples beyond a percentile bound."""
    reach = math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 1 - RESERVE * alpha))
    return 0.5 * math.erfc(reach / math.sqrt(2))


def quantile_bound(values: Floats, share: float, alpha: float) -> Bound:
    """A quantile by order statistics: exact for any distribution (David and Nagaraja 2003, 7.1).

    The upper end is infinite when even the largest of n values may lie below the quantile.
    """
    n, ordered = len(values), np.sort(values)
    below = np.arange(n + 1)
    cdf = bdtr(below, n, share)
    upper = int(np.searchsorted(cdf, 1 - alpha - 1e-12)) + 1
    lower = int(np.searchsorted(cdf, alpha, side="right"))
    return Bound(
        float(np.quantile(ordered, share, method="inverted_cdf")),
        float(ordered[lower - 1]) if lower >= 1 else -math.inf,
        float(ordered[upper - 1]) if upper <= n else math.inf,
        n,
        "order_statistics",
    )


def negated(bound: Bound) -> Bound:
    # from 0.0, because -0.0 would be shown as -0
    return replace(bound, estimate=0.0 - bound.estimate, low=0.0 - bound.high, high=0.0 - bound.low)


def mapped(bound: Bound, function: Callable[[float], float]) -> Bound:
    """The bound of a rising function of the estimate."""
    return replace(
        bound,
        estimate=function(bound.estimate),
        low=function(bound.low),
        high=function(bound.high),
    )


def _ends(t: Floats, alpha: float, estimate: float, error: float) -> tuple[float, float]:
    down, up = _at(t, 1 - alpha), _at(t, alpha)
    return estimate - down * error, estimate - up * error


def _undecided(t: Floats, alpha: float, estimate: float, error: float, limit: float) -> bool:
    slack = 2 * math.sqrt(alpha * (1 - alpha) / len(t))
    for share in (alpha, 1 - alpha):
        near = estimate - _at(t, min(share + slack, 1)) * error
        far = estimate - _at(t, max(share - slack, 0)) * error
        if near < limit < far:
            return True
    return False


def _at(t: Floats, share: float) -> float:
    return float(t[min(int(share * len(t)), len(t) - 1)])
