"""Real A/A releases: the quickstart's data and settings, another seed each time.

`python -m bench.aa_releases --releases 20` trains, evaluates, gates and rolls out each model for
real, one after the other; each must not be worse than the champion before it. Models differ by
their seed alone, so a gate that stops many of them blocks on noise. Takes two to three minutes a
release on two idle cores. A second run goes on where the first one ended.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from trainyard.evaluation.intervals import clopper_pearson
from trainyard.files import write_text

ROOT = Path(__file__).resolve().parent.parent
NAME = "quickstart-aa"
MAX_DROP = 0.05
"""Largest drop of exact match against the champion; about 2.5 standard errors at 400 samples."""


def recipe() -> str:
    """The quickstart under another name and port, with a gate against the champion."""
    spec = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())
    spec["name"] = NAME
    spec["deploy"]["port"] = 8790
    spec["gates"]["not_worse"] = {
        "metric": "exact_match",
        "compare": "champion",
        "max_drop": MAX_DROP,
    }
    return yaml.safe_dump(spec, sort_keys=False)


def run_of(seed: int) -> dict[str, Any] | None:
    """The newest run that asked for this seed and ended with a verdict."""
    found = None
    for folder in sorted((ROOT / ".trainyard/runs").glob(f"{NAME}*")):
        gates, resolved = folder / "gate.json", folder / "recipe.json"
        if gates.is_file() and json.loads(resolved.read_text())["train"]["seed"] == seed:
            found = {"folder": folder, **json.loads(gates.read_text())}
    return found


def release(file: Path, seed: int) -> dict[str, Any]:
    done = run_of(seed)
    if done is None:
        command = [sys.executable, "-m", "flows.release", str(file), "--set", f"train.seed={seed}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        done = run_of(seed)
        if done is None:
            sys.exit(f"seed {seed} ended without a verdict:\n{ended.stdout}{ended.stderr}")
    return done


def line(seed: int, decision: dict[str, Any], state: str) -> str:
    gates = "  ".join(
        f"{g['id']} {g['verdict']} {g['estimate']:.4f} [{g['low']:.4f}, {g['high']:.4f}]"
        for g in decision["gates"]
        if g["low"] is not None
    )
    return f"seed {seed:<5} {decision['verdict']:<13} {state:<18} {gates}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    asked = parser.parse_args()
    wanted, first = asked.releases, asked.first_seed
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, commit {commit.strip()}", flush=True)
    file = ROOT / ".trainyard/aa.yaml"
    file.parent.mkdir(exist_ok=True)
    write_text(file, recipe())
    verdicts: Counter[str] = Counter()
    for seed in range(first, first + wanted):
        decision = release(file, seed)
        summary = json.loads((decision["folder"] / "summary.json").read_text())
        stopped = summary["failed_stage"]
        ended = summary["status"] + (f" at {stopped}" if stopped else "")
        verdicts[decision["verdict"]] += 1
        print(line(seed, decision, ended), flush=True)
    passed = verdicts["PASS"]
    low, high = clopper_pearson(passed, wanted)
    print(f"passed {passed} of {wanted} (95 % interval {low:.2f} to {high:.2f}): {dict(verdicts)}")


if __name__ == "__main__":
    main()
