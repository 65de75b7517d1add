"""How often the monitor's drift alarm is wrong, and what it finds: simulated users, the real check.

    python -m bench.drift [--windows 650] [--shifted 10]

Users send support tickets as `recipes/quickstart/world.py` writes them, drawn anew for each seed.
The first row is one test of both windows, the 100 and 200 newest against 200 before; it may ring in
`alpha` of the seeds, whatever the sizes, since a permutation test is exact. Then windows and
reference have the sizes that a recipe has by default, and part of the users asks something else.
Rates have exact 95 % intervals (Clopper and Pearson 1934).
"""

import argparse
import importlib
import json
import os
import platform
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.webhook import commit
from trainyard.evaluation.intervals import clopper_pearson
from trainyard.monitor import questions
from trainyard.monitor.finding import Health
from trainyard.monitor.questions import DriftMemory
from trainyard.recipe.monitor import DriftSpec

SMALL = DriftSpec(against="traffic", reference=200, short=100, long=200)
USUAL = DriftSpec(against="traffic")

sys.path.insert(0, str(Path("recipes/quickstart").absolute()))
world = importlib.import_module("world")

Asks = Callable[[random.Random], Any]


def ticket(rng: random.Random) -> Any:
    return world.task_chat(world.case(rng, "train"), rng)[:-1]


def unseen(rng: random.Random) -> Any:
    """A ticket whose names, brands and products were in no ticket before."""
    return world.task_chat(world.case(rng, "eval"), rng)[:-1]


def follow_up(rng: random.Random) -> Any:
    """A ticket with questions about it: another task."""
    return world.question_chat(world.case(rng, "train"), rng)[:-1]


def rings(spec: DriftSpec, share: float, asks: Asks, seed: int) -> bool:
    """Whether the alarm rings when, after the reference, `share` of the users sends `asks`."""
    rng = random.Random(seed)
    rows = [{"messages": ticket(rng)} for _ in range(spec.reference)]
    for _ in range(spec.long):
        rows.append({"messages": asks(rng) if rng.random() < share else ticket(rng)})
    found = questions.check_drift(spec, rows, None, DriftMemory()).finding
    assert found is not None
    return found.health is Health.BREACH


def measured(what: str, spec: DriftSpec, share: float, asks: Asks, runs: int) -> dict[str, Any]:
    rang = sum(rings(spec, share, asks, seed) for seed in range(runs))
    low, high = clopper_pearson(rang, runs)
    sizes = f"{spec.reference:5} {spec.short:4} {spec.long:4}"
    counted = f"{rang:4} of {runs:4}   {rang / runs:6.3f}  [{low:.3f}, {high:.3f}]"
    print(f"{what:38} {sizes}   {counted}", flush=True)
    return {"what": what, "rang": rang, "of": runs, "low": round(low, 4), "high": round(high, 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=650, help="seeds without drift")
    parser.add_argument("--shifted", type=int, default=10, help="seeds of each shift")
    given = parser.parse_args()
    at = commit()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"commit {at}; alpha {SMALL.alpha:g} over both windows")  # fmt: skip
    print(f"{'users ask':38} {'ref.':>5} {'new':>4} {'long':>4}   {'rang':>12}   {'rate':>6}  95 %")
    rows = [
        measured("no drift", SMALL, 0.0, ticket, given.windows),
        measured("5 % another task", USUAL, 0.05, follow_up, given.shifted),
        measured("7.5 % another task", USUAL, 0.075, follow_up, given.shifted),
        measured("10 % another task", USUAL, 0.1, follow_up, given.shifted),
        measured("half with unseen names and products", USUAL, 0.5, unseen, given.shifted),
    ]
    spent = os.times()
    fair = rows[0]
    summary = {
        "commit": at, "alpha": SMALL.alpha, "rows": rows,
        "rings_as_often_as_it_may": fair["low"] <= SMALL.alpha,
        "cpu_s": round(spent.user + spent.system, 1),
    }  # fmt: skip
    print(json.dumps(summary))
    return 0 if summary["rings_as_often_as_it_may"] else 1


if __name__ == "__main__":
    sys.exit(main())
