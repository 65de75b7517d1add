"""How often the rollout's verdict aborts, and after how long: healthy and sick canaries, simulated.

20 requests/s of which the canary gets 5 %, a look every 15 s for 10 minutes, lognormal latencies
(median 0.3 s, sigma 0.5). Four tables draw them autocorrelated, as an AR(1) in time with a time
constant of 60 s: in "shared waves" both variants slow down together (sd 25 %: load), in "own waves"
each by itself (sd 5 %: co-tenants), in "both waves" both happen, in "big own waves" each has an sd
of 10 %. There a healthy canary's level over two minutes has an sd of 12 % against the champion's,
and 1.3 x is 26 %: no test tells them apart so fast in 99 of 100 runs, and a larger
`latency_tolerance` is for such a place. The champion's last 10 minutes before the rollout are
known. `--runs N` sets the runs per row.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainyard.rollout.verdict import Evidence, Outcome, Rules, judge, learn, take

LOOKS, LOOK_S, CANARY_N, CHAMPION_N = 40, 15.0, 15, 285
RULES = Rules(min_requests=30, requests=10**9, margin=0.02, alpha=0.01, latency_tolerance=1.15)
SIGMA = 0.5


@dataclass(frozen=True)
class Case:
    errors: float = 0.005
    factor: float = 1.0
    tail: float = 0.0
    champion_errors: float = 0.005


def _answers(
    rng: np.random.Generator, n: int, case: Case | None, champion_errors: float, level: float
) -> Iterator[Outcome]:
    seconds = np.exp(math.log(0.3) + SIGMA * rng.standard_normal(n) + level)
    errors = champion_errors
    if case is not None:
        errors = case.errors
        seconds *= np.where(rng.random(n) < case.tail, 4.0, case.factor)
    failed = rng.random(n) < errors
    for s, f in zip(seconds.tolist(), failed.tolist(), strict=True):
        yield Outcome(canary=case is not None, failed=f, seconds=s)


def run(rng: np.random.Generator, case: Case, shared: float, own: float) -> float | None:
    """Seconds until the abort, or None. `shared` and `own`: sd of the waves of log-latency."""
    keep = math.exp(-LOOK_S / 60.0)
    noise = math.sqrt(1 - keep * keep)
    waves = rng.standard_normal(3)
    evidence = Evidence()
    for look in range(-LOOKS, LOOKS):
        waves = keep * waves + noise * rng.standard_normal(3)
        champion_level = shared * waves[0] + own * waves[1]
        canary_level = shared * waves[0] + own * waves[2]
        block = list(_answers(rng, CHAMPION_N, None, case.champion_errors, champion_level))
        if look < 0:
            evidence = learn(evidence, block, RULES)
            continue
        block += _answers(rng, CANARY_N, case, 0.0, canary_level)
        evidence = take(evidence, block, RULES)
        if judge(evidence, RULES, (look + 1) * CANARY_N).decision == "abort":
            return (look + 1) * LOOK_S
    return None


CASES = {
    "healthy": Case(),
    "3 % errors in both": Case(errors=0.03, champion_errors=0.03),
    "errors 5 %": Case(errors=0.05),
    "errors 20 %": Case(errors=0.2),
    "all fail": Case(errors=1.0),
    "latency x 1.1": Case(factor=1.1),
    "latency x 1.3": Case(factor=1.3),
    "latency x 2": Case(factor=2.0),
    "5 % of requests x 4": Case(tail=0.05),
    "canary x 0.7": Case(factor=0.7),
}
KINDS = {
    "independent": (0.0, 0.0),
    "shared waves": (0.25, 0.0),
    "own waves": (0.0, 0.05),
    "both waves": (0.25, 0.05),
    "big own waves": (0.0, 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    rng = np.random.default_rng(7)
    keys: dict[str, float | None] = {}
    print(f"{'canary':<22} {'latencies':<13} aborted  median s  ({runs} runs)")
    for kind, (shared, own) in KINDS.items():
        suffix = "" if kind == "independent" else "_" + kind.replace(" ", "_")
        for name, case in CASES.items():
            times = [run(rng, case, shared, own) for _ in range(runs)]
            hit = [t for t in times if t is not None]
            aborted = len(hit) / runs
            median = statistics.median(hit) if hit else None
            print(f"{name:<22} {kind:<13} {aborted:7.1%}  {median or '-'}", flush=True)
            match name:
                case "healthy":
                    keys[f"healthy_aborted{suffix}"] = aborted
                case "errors 20 %":
                    keys[f"errors20_median{suffix}_s"] = median
                case "latency x 1.3":
                    keys[f"latency13_median{suffix}_s"] = median
                    keys[f"latency13_aborted{suffix}"] = aborted
                case "latency x 2":
                    keys[f"latency2_median{suffix}_s"] = median
    print(json.dumps(keys))


if __name__ == "__main__":
    main()
