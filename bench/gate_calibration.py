"""How often a gate is wrong: simulated releases, each decided by the code that decides real ones.

    python -m bench.gate_calibration [--releases 10000]

`promote` is the share of releases that pass, `exact` the same computed over all outcomes where
they can be enumerated, `theory` the power by the textbook formula. A model that sits on the limit,
or is worse, must pass in at most 5 % of releases; an equal model, with the n that the plan asks for
at 95 % power, must be blocked in at most 5 %. Bootstraps draw 2,000 resamples here and 10,000 in a
gate.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from scipy.special import bdtr
from scipy.stats import binom

from trainyard.evaluation import corpus
from trainyard.gate import bounds
from trainyard.gate.planning import items_for_drop, items_for_mean, items_for_rate
from trainyard.gate.verdicts import compare

ALPHA = 0.05
DRAWS = 2_000
BAD, EQUAL, GOOD = "must not pass", "equal, as planned", "better"


@dataclass(frozen=True)
class Case:
    kind: str
    what: str
    truth: str
    n: int
    releases: int
    promote: float
    exact: float | None = None
    theory: float | None = None

    @property
    def rate(self) -> float:
        return self.promote if self.exact is None else self.exact


def passes(bound: bounds.Bound, op: str, value: float) -> bool:
    return compare(bound, op, value).value == "PASS"


def phi(x: float) -> float:
    return NormalDist().cdf(x)


# 0/1 scores against a limit


def rates(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for limit in (0.5, 0.85, 0.9, 0.99):
        for n in (20, 50, 100, 200, 1000):
            table = rate_table(n, limit, ">=", "auto")
            for truth, kind in ((limit, BAD), (limit - 0.03, BAD)):
                yield counted(rng, releases, "accuracy", f">= {limit}", n, table, truth, kind)
    for better in (0.88, 0.92):
        n = items_for_rate(better, 0.85, ALPHA, 0.95) or 0
        table = rate_table(n, 0.85, ">=", "auto")
        yield counted(rng, releases, "accuracy", ">= 0.85", n, table, better, GOOD, theory=0.95)


def harmful(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for n in (100, 299, 473, 1049):
        table = rate_table(n, 0.01, "<=", "clopper_pearson")
        yield counted(rng, releases, "harmful_rate", "<= 0.01", n, table, 0.01, BAD)
        yield counted(rng, releases, "harmful_rate", "<= 0.01", n, table, 0.04, BAD)
    table = rate_table(1049, 0.01, "<=", "clopper_pearson")
    power = float(bdtr(5, 1049, 0.002))
    yield counted(rng, releases, "harmful_rate", "<= 0.01", 1049, table, 0.002, GOOD, theory=power)


def rate_table(n: int, limit: float, op: str, interval: str, alpha: float = ALPHA) -> np.ndarray:
    """Whether each number of successes from 0 to n passes."""
    found = [
        passes(bounds.binomial(k, n, alpha, op=op, value=limit, interval=interval), op, limit)
        for k in range(n + 1)
    ]
    return np.array(found)


def counted(
    rng: np.random.Generator,
    releases: int,
    kind: str,
    what: str,
    n: int,
    table: np.ndarray,
    truth: float,
    label: str,
    *,
    theory: float | None = None,
) -> Case:
    promoted = table[rng.binomial(n, truth, 10 * releases)].mean()
    exact = float(binom.pmf(np.arange(n + 1), n, truth) @ table)
    return Case(kind, f"{what}, true {truth:.4g}", label, n, 10 * releases, promoted, exact, theory)


# drawing more items while INCONCLUSIVE: alpha is split over the looks


def drawing(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    """First 200 items, then 400, then 800, as `limit: 200, more: [400, 800]` has it."""
    sizes = (200, 400, 800)
    for limit in (0.5, 0.85, 0.95):
        op = f">= {limit}"
        yield drawn(rng, releases, "accuracy, 3 looks", op, sizes, limit, limit, BAD)
        yield drawn(rng, releases, "accuracy, 3 looks", op, sizes, limit, limit - 0.03, BAD)
    # the power of 800 items at once, at the level of one look: further looks only add to it
    least = rate_table(800, 0.85, ">=", "auto", ALPHA / 3)
    alone = float(binom.pmf(np.arange(801), 800, 0.89) @ least)
    yield drawn(rng, releases, "accuracy, 3 looks", ">= 0.85", sizes, 0.85, 0.89, GOOD,
                least=alone)  # fmt: skip
    yield from drops_drawn(rng, releases)
    x = rng.beta(8, 1, (releases, 400))
    passed = bootstrap_low(x[:, :100], np.ones(100), ALPHA / 3) >= 8 / 9
    for n in (200, 400):
        passed |= bootstrap_low(x[:, :n], np.ones(n), ALPHA / 3) >= 8 / 9
    yield Case("rougeL, 3 looks", "beta(8,1), at the limit", BAD, 400, releases, passed.mean())


def drawn(
    rng: np.random.Generator,
    releases: int,
    kind: str,
    what: str,
    sizes: tuple[int, ...],
    limit: float,
    truth: float,
    label: str,
    least: float | None = None,
) -> Case:
    """Stops at the first verdict; exact by carrying the undecided counts from look to look."""
    tables = [rate_verdicts(n, limit, ALPHA / len(sizes)) for n in sizes]
    right, undecided = np.zeros(10 * releases, dtype=int), np.ones(10 * releases, dtype=bool)
    promoted = np.zeros(10 * releases, dtype=bool)
    weight, exact, before = np.ones(1), 0.0, 0
    for n, (passes_, fails) in zip(sizes, tables, strict=True):
        right += rng.binomial(n - before, truth, len(right))
        promoted |= undecided & passes_[right]
        undecided &= ~passes_[right] & ~fails[right]
        step = binom.pmf(np.arange(n - before + 1), n - before, truth)
        weight = np.convolve(weight, step)
        exact += float(weight @ passes_)
        weight = np.where(passes_ | fails, 0.0, weight)
        before = n
    return Case(kind, f"{what}, true {truth:.4g}", label, sizes[-1], 10 * releases,
                float(promoted.mean()), exact, least)  # fmt: skip


@cache
def rate_verdicts(n: int, limit: float, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each number of successes from 0 to n passes, and whether it fails."""
    found = [
        compare(
            bounds.binomial(k, n, alpha, op=">=", value=limit, interval="auto"), ">=", limit
        ).value
        for k in range(n + 1)
    ]
    return np.array([v == "PASS" for v in found]), np.array([v == "FAIL" for v in found])


def drops_drawn(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    margin, discordant, sizes = 0.05, 0.1, (200, 400, 800)
    win, lose = (discordant - margin) / 2, (discordant + margin) / 2
    counts = np.zeros((10 * releases, 2), dtype=int)
    promoted = np.zeros(len(counts), dtype=bool)
    before = 0
    for n in sizes:
        counts += rng.multinomial(n - before, [win, lose, 1 - win - lose], len(counts))[:, :2]
        pairs, where = np.unique(counts, axis=0, return_inverse=True)
        passed = [
            bounds.tango_bound(int(b), int(c), n, ALPHA / 3, margin=margin).low >= -margin
            for b, c in pairs
        ]
        promoted |= np.array(passed)[where.ravel()]
        before = n
    yield Case("drop, 3 looks", f"<= {margin}, true {margin}", BAD, sizes[-1], len(counts),
               float(promoted.mean()))  # fmt: skip


def best_of(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    """Five candidates that compete, by Holm's steps; and how often any wrong one would pass."""
    k, n = 5, 400
    tables = [rate_table(n, 0.85, ">=", "auto", ALPHA / left) for left in range(k, 0, -1)]
    for good in (0, 2):
        truths = np.array([0.95] * good + [0.85] * (k - good))
        right = rng.binomial(n, truths, (releases, k))
        passed = np.zeros_like(right, dtype=bool)
        for _ in range(k):
            step = passed.sum(axis=1)
            level = np.array([tables[min(i, k - 1)] for i in range(k + 1)])
            now = np.take_along_axis(level[step], right, axis=1)
            passed |= now
        what = f">= 0.85, {good} of {k} better, any other"
        wrong = passed[:, good:].any(axis=1).mean()
        yield Case("best of five", what, BAD, n, releases, float(wrong))


def corrected(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    """A judge that flatters: the rate by PPI++ from human labels on a random part of the items."""
    n = 400
    for limit in (0.6, 0.8):
        for labels in (100, 200):
            truth = (rng.random((releases, n)) < limit).astype(float)
            said = np.where(rng.random((releases, n)) < 0.8, truth, 1.0)
            promoted = corrected_low(truth[:, :labels], said[:, :labels], said[:, labels:]) > limit
            what = f"> {limit}, {labels} labels, flattered, at the limit"
            yield Case("win_rate, PPI++", what, BAD, n, releases, float(promoted.mean()))


def corrected_low(y: np.ndarray, f: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """`bounds.corrected_mean` of each row, by the gate's own function with fewer resamples."""
    before, bounds.RESAMPLES = bounds.RESAMPLES, 500
    try:
        rows = zip(y, f, rest, strict=True)
        return np.array([bounds.corrected_mean(*row, ALPHA, [1]).low for row in rows])
    finally:
        bounds.RESAMPLES = before


def latency(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for n in (299, 600):
        x = rng.lognormal(0, 1, (releases, n))
        limit = math.exp(NormalDist().inv_cdf(0.99))
        promoted = [passes(bounds.quantile_bound(row, 0.99, ALPHA), "<=", limit) for row in x]
        rank = bounds.quantile_bound(np.arange(1.0, n + 1), 0.99, ALPHA).high
        exact = float(binom.sf(rank - 1, n, 0.99))
        yield Case("p99_latency_ms", "at the limit", BAD, n, releases, float(np.mean(promoted)),
                   exact)  # fmt: skip


def win_rates(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for limit in (0.5, 0.75):
        for ties in (0.0, 0.3):
            for n in (50, 200):
                win = limit - ties / 2
                counts = rng.multinomial(n, [win, ties, 1 - win - ties], releases)
                sums = counts[:, 0] + counts[:, 1] / 2
                promoted = lookup(sums, lambda s, n=n, t=limit: passes(share(s, n, t), ">", t))
                what = f"> {limit}, {ties:.0%} ties, at the limit"
                yield Case("win_rate", what, BAD, n, releases, float(promoted.mean()))


def share(total: float, n: int, limit: float) -> bounds.Bound:
    """The gate's bound for n scores with this sum; only the sum matters."""
    whole, rest = int(total), total - int(total)
    values = np.zeros(n)
    values[:whole] = 1
    if rest:
        values[whole] = rest
    return bounds.share_mean(values, ALPHA, op=">", value=limit)


def lookup(values: np.ndarray, decide: Callable[[float], bool]) -> np.ndarray:
    known, where = np.unique(values, return_inverse=True)
    return np.array([decide(float(value)) for value in known])[where]


# paired 0/1 scores


def drops(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for margin in (0.02, 0.05):
        for discordant in (0.05, 0.1, 0.2):
            for n in (100, 300, 1000):
                for drop in (margin, margin + 0.03):
                    if discordant > drop:
                        yield tango(rng, releases, n, margin, discordant, drop, BAD)
            n = items_for_drop(margin, discordant, ALPHA, 0.95)
            yield tango(rng, releases, n, margin, discordant, 0.0, EQUAL, theory=0.95)
    yield tango(rng, releases, 1000, 0.02, 0.1, 0.0, GOOD, theory=power(1000, 0.02, 0.1, 0.0))
    yield tango(rng, releases, 1000, 0.02, 0.1, 0.01, GOOD, theory=power(1000, 0.02, 0.1, 0.01))


def power(n: int, margin: float, discordant: float, drop: float) -> float:
    spread = math.sqrt((discordant - drop**2) / n)
    return phi((margin - drop) / spread - 1.6449)


def tango(
    rng: np.random.Generator,
    releases: int,
    n: int,
    margin: float,
    discordant: float,
    drop: float,
    label: str,
    *,
    theory: float | None = None,
) -> Case:
    win, lose = (discordant - drop) / 2, (discordant + drop) / 2

    @cache
    def low(wins: int, losses: int) -> float:
        return bounds.tango_bound(wins, losses, n, ALPHA, margin=margin).low

    counts = rng.multinomial(n, [win, lose, 1 - win - lose], 10 * releases)[:, :2]
    pairs, times = np.unique(counts, axis=0, return_counts=True)
    passed = np.array([low(int(b), int(c)) >= -margin for b, c in pairs])
    promoted = passed @ times / times.sum()
    what = f"<= {margin}, {discordant:.0%} discordant, true {drop:.4g}"
    return Case("capability_drop", what, label, n, 10 * releases, float(promoted),
                enumerated(n, margin, win, lose, low), theory)  # fmt: skip


def enumerated(
    n: int, margin: float, win: float, lose: float, low: Callable[[int, int], float]
) -> float:
    """Probability of passing, over all numbers of wins and losses."""
    first, last = (int(x) for x in binom.ppf([1e-9, 1 - 1e-9], n, lose))
    total = 0.0
    fewest = 0
    for losses in range(first, last + 1):
        while fewest <= n - losses and low(fewest, losses) < -margin:
            fewest += 1
        if fewest > n - losses:
            break
        given = binom.sf(fewest - 1, n - losses, min(win / (1 - lose), 1.0))
        total += binom.pmf(losses, n, lose) * given
    return float(total)


# means, ratios, clusters: the studentised bootstrap, many releases at once


def means(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    shapes: dict[str, tuple[Callable[[tuple[int, int]], np.ndarray], float]] = {
        "beta(2,2)": (lambda size: rng.beta(2, 2, size), 0.5),
        "beta(8,1)": (lambda size: rng.beta(8, 1, size), 8 / 9),
        "nine in ten perfect": (
            lambda size: np.where(rng.random(size) < 0.9, 1.0, rng.random(size) / 2), 0.925,
        ),
    }  # fmt: skip
    for n in (50, 200):
        for name, (draw, mean) in shapes.items():
            promoted = bootstrap_low(draw((releases, n)), np.ones(n)) >= mean
            yield Case("rougeL", f"{name}, at the limit", BAD, n, releases, promoted.mean())
    x = rng.beta(2, 2, (releases, 200))
    promoted = bootstrap_low(x, np.ones(200)) >= 0.53
    yield Case("rougeL", "beta(2,2), -3 points", BAD, 200, releases, promoted.mean())


def perplexity(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for n in (50, 200):
        tokens = rng.integers(20, 400, n).astype(float)
        noise = rng.standard_t(5, (releases, n)) * 0.05
        for loss, label in ((math.log(1.05), BAD), (math.log(1.08), BAD), (0.0, EQUAL)):
            worse = (loss + noise) * tokens
            promoted = -bootstrap_low(-worse, tokens) <= math.log(1.05)
            what = f"<= 1.05, true {math.exp(loss):.3g}"
            yield Case("perplexity_ratio", what, label, n, releases, promoted.mean())


def paired_means(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    margin, n = 0.02, 200
    planned = items_for_mean(margin, 0.1, ALPHA, 0.95) or 0
    for size, drop, label in ((n, 0.02, BAD), (n, 0.05, BAD), (planned, 0.0, EQUAL)):
        change = -drop + rng.normal(0, 0.1, (releases, size))
        promoted = bootstrap_low(change, np.ones(size)) >= -margin
        what = f"max_drop 0.02 of rougeL, true {drop:.4g}"
        theory = 0.95 if label == EQUAL else None
        yield Case("paired mean", what, label, size, releases, promoted.mean(), theory=theory)


def clusters(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    for groups, size in ((30, 10), (100, 5)):
        rate = rng.beta(0.85 * 4, 0.15 * 4, (releases, groups))
        x = (rng.random((releases, groups, size)) < rate[..., None]).astype(float)
        index = np.repeat(np.arange(groups), size)
        found = [bounds.clustered_binomial(row.ravel(), index, ALPHA).low >= 0.85 for row in x]
        what = f"{groups} clusters of {size}, at the limit"
        yield Case("accuracy", what, BAD, groups * size, releases, float(np.mean(found)))
    shared = rng.normal(0, 0.1, (releases, 60, 1)) + rng.normal(0, 0.1, (releases, 60, 5))
    promoted = bootstrap_low((0.5 + shared).sum(axis=2), np.full(60, 5.0)) >= 0.5
    yield Case("rougeL", "60 clusters of 5, at the limit", BAD, 300, releases, promoted.mean())


def bootstrap_low(sums: np.ndarray, weights: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """The lower bound of `bounds.bootstrap_mean` for each row of `sums` (releases, units).

    Every release of a gate draws the same resamples (same seed, same n), so they are drawn once.
    Rows of scores in [0, 1] without spread get Wilson's bound, as in the gate.
    """
    releases, m = sums.shape
    estimate = sums.sum(axis=1) / weights.sum()
    residual = sums - estimate[:, None] * weights
    error = np.sqrt((residual**2).sum(axis=1) / weights.sum() ** 2 * m / (m - 1))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([20261120, 1])))
    times = bounds.resampled_sums(np.eye(m), DRAWS, rng)
    fixed = [times @ column[:, None] for column in (weights, weights**2)]
    low = np.empty(releases)
    for start in range(0, releases, 500):
        s = sums[start : start + 500].T
        moments = np.stack(
            np.broadcast_arrays(
                times @ s, fixed[0], times @ s**2, times @ (s * weights[:, None]), fixed[1]
            )
        )
        ratio, spread = bounds.ratio_and_variance(moments, m)
        part = slice(start, start + 500)
        t = bounds.t_values(ratio, spread, estimate[None, part])
        place = min(int((1 - bounds.RESERVE * alpha) * DRAWS), DRAWS - 1)
        t = np.partition(t, place, axis=0)[place]
        low[part] = estimate[part] - t * error[part]
    flat = error <= 1e-12
    low[flat] = [share(row.sum(), m, 0.5).low for row in sums[flat] / weights]
    return low


def labels(rng: np.random.Generator, releases: int) -> Iterator[Case]:
    """Macro-F1 of three labels, one rare: a corpus statistic by the percentile bootstrap."""
    n, share = 300, np.array([0.6, 0.3, 0.1])
    hit = np.array([0.95, 0.85, 0.7])
    expected = rng.choice(3, (releases, n), p=share)
    right = rng.random((releases, n)) < hit[expected]
    predicted = np.where(right, expected, (expected + 1) % 3)
    many = rng.choice(3, 4_000_000, p=share)
    guess = np.where(rng.random(len(many)) < hit[many], many, (many + 1) % 3)
    truth = float(corpus.f1(one_hot(many[None], guess[None]).sum(axis=1))[0])
    seeds = np.random.Generator(np.random.PCG64(np.random.SeedSequence([20261120, 2])))
    times = bounds.resampled_sums(np.eye(n), DRAWS, seeds).astype(np.float32)
    tail = bounds.expanded_tail(n, ALPHA)
    low = np.empty(releases)
    for start in range(0, releases, 200):
        part = slice(start, start + 200)
        stats = one_hot(expected[part], predicted[part]).astype(np.float32)
        flat = np.moveaxis(stats, 1, 0).reshape(n, -1)
        values = corpus.f1((times @ flat).reshape(DRAWS, -1, 9))
        low[part] = np.quantile(values, tail, axis=0)
    yield Case("macro_f1", "three labels, at the limit", BAD, n, releases, (low >= truth).mean())


def one_hot(expected: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(releases, items, 9): hits, predicted and expected per label."""
    which = np.arange(3)
    e, p = expected[..., None] == which, predicted[..., None] == which
    return np.stack([e & p, p, e], axis=-1).reshape(*expected.shape, 9).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=10_000, help="per case")
    args = parser.parse_args()
    started = time.perf_counter()
    rng = np.random.default_rng(20261120)
    cases: list[Case] = []
    for family in (rates, harmful, drawing, best_of, latency, win_rates, corrected, drops,
                   means, perplexity, paired_means, clusters, labels):  # fmt: skip
        for case in family(rng, args.releases):
            cases.append(case)
            show(case)
    bad = [case for case in cases if case.truth == BAD]
    equal = [case for case in cases if case.truth == EQUAL]
    summary = {
        "false_promote_max": round(max(case.rate for case in bad), 4),
        "false_promote_simulated_max": round(max(case.promote for case in bad), 4),
        "noise_95": round(1.96 * math.sqrt(ALPHA * (1 - ALPHA) / args.releases), 4),
        "false_block_max": round(max(1 - case.rate for case in equal), 4),
        "cases": len(cases),
        "releases_per_case": args.releases,
        "power_gap_max": round(
            max(abs(case.rate - case.theory) for case in cases if case.theory is not None), 4
        ),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(summary))


def show(case: Case) -> None:
    exact = f"{case.exact:8.4f}" if case.exact is not None else " " * 8
    theory = f"{case.theory:7.3f}" if case.theory is not None else " " * 7
    print(
        f"{case.kind:17} {case.what:46} n {case.n:5} {case.truth:18} "
        f"promote {case.promote:.4f} exact {exact} theory {theory}",
        flush=True,
    )


if __name__ == "__main__":
    main()
