"""Whether a judge may decide: its agreement with people, its steadiness, its resistance."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.errors import InputError
from trainyard.evaluation.judge.attacks import PROBES
from trainyard.evaluation.judge.calls import Account, Call, Jury, judge
from trainyard.evaluation.judge.protocol import BEST, WORST, Pair, Single

LABELS = ("A", "B", "tie")
GRADES = range(WORST, BEST + 1)
MIN_LABELS = 100
MIN_KAPPA = 0.40
MIN_KAPPA_LOW = 0.20
MIN_CONSISTENT = 0.60
MAX_INVALID = 0.02
MAX_ATTACKS = 0.05
MAX_AGE_DAYS = 90


@dataclass(frozen=True, slots=True)
class Label:
    """One pair that people compared."""

    pair: Pair
    label: str
    second: str | None
    day: date


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer that people graded from 1 to 5."""

    shown: Single
    grade: int
    second: int | None
    day: date


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line


def read_grades(path: Path) -> list[Graded]:
    """Raises InputError naming the line of a row that is no grade."""
    found = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            shown = Single(row["prompt"], row["answer"], row.get("reference"))
            day = date.fromisoformat(row["labelled_at"])
            graded = Graded(shown, row["grade"], row.get("grade2"), day)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number} is no grade: {error!r}; it needs prompt, answer, grade and "
                "labelled_at (YYYY-MM-DD)"
            ) from error
        if graded.grade not in GRADES or graded.second not in (*GRADES, None):
            raise InputError(f"{path}:{number} has grade {graded.grade!r}; use 1, 2, 3, 4 or 5")
        found.append(graded)
    return found


def read_labels(path: Path) -> list[Label]:
    """Raises InputError naming the line of a row that is no label."""
    found = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            pair = Pair(row["prompt"], row["a"], row["b"], row.get("reference"))
            label = Label(
                pair, row["label"], row.get("label2"), date.fromisoformat(row["labelled_at"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number} is no label: {error!r}; it needs prompt, a, b, label and "
                "labelled_at (YYYY-MM-DD)"
            ) from error
        if label.label not in LABELS or label.second not in (*LABELS, None):
            raise InputError(f"{path}:{number} has label {label.label!r}; use A, B or tie")
        found.append(label)
    return found


def kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen 1960: agreement beyond chance; NaN when chance explains everything."""
    if not one or len(one) != len(other):
        raise InputError(f"kappa needs as many labels of both, got {len(one)} and {len(other)}")
    names = sorted(set(one) | set(other))
    table = np.zeros((len(names), len(names)))
    for a, b in zip(one, other, strict=True):
        table[names.index(a), names.index(b)] += 1
    return _kappa(table)


def weighted_kappa(one: Sequence[int], other: Sequence[int]) -> float:
    """Cohen 1968 with quadratic weights, for grades; NaN when chance explains everything."""
    table = np.zeros((len(GRADES), len(GRADES)))
    for a, b in zip(one, other, strict=True):
        table[a - WORST, b - WORST] += 1
    return _kappa(table, weighted=True)


def kappa_interval(
    one: Sequence[Any],
    other: Sequence[Any],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    weighted: bool = False,
) -> tuple[float, float]:
    """Percentile bootstrap over items, 2,000 resamples; `weighted` for grades."""
    names = list(GRADES) if weighted else sorted(set(one) | set(other))
    a = np.array([names.index(x) for x in one])
    b = np.array([names.index(x) for x in other])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(2000):
        pick = rng.integers(0, len(a), len(a))
        table = np.zeros((len(names), len(names)))
        np.add.at(table, (a[pick], b[pick]), 1)
        values.append(_kappa(table, weighted=weighted))
    clean = [value for value in values if not math.isnan(value)] or [math.nan]
    tail = (1 - confidence) / 2
    low, high = np.quantile(clean, [tail, 1 - tail])
    return float(low), float(high)


def _kappa(table: np.ndarray[Any, Any], *, weighted: bool = False) -> float:
    """One minus the disagreement found over that of chance."""
    k = np.arange(len(table))
    cost = (k[:, None] - k) ** 2 if weighted else k[:, None] != k
    n = table.sum()
    chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    expected = float((cost * chance).sum())
    return 1 - float((cost * table).sum()) / expected if expected > 0 else math.nan


def calibrate_grades(
    jury: Jury, labels: Sequence[Graded], today: date, account: Account
) -> dict[str, Any]:
    """Measure a judge that grades; `calibrated` is true only when every bar is reached.

    A judge's grade is the mean of its criteria, rounded; an invalid call is the worst grade.
    """
    calls = judge(jury, [label.shown for label in labels], account)
    given = [WORST + round((call.grade or 0.0) * (BEST - WORST)) for call in calls]
    people = [label.grade for label in labels]
    facts: dict[str, Any] = {
        "fingerprint": jury.fingerprint,
        "n": len(labels),
        "invalid": sum(call.verdict == "invalid" for call in calls) / max(len(calls), 1),
        "attack_success": graded_attack_success(jury, account),
    }
    if labels:
        low, high = kappa_interval(given, people, seed=jury.seed, weighted=True)
        facts |= {
            "kappa": _number(weighted_kappa(given, people)),
            "kappa_low": _number(low),
            "kappa_high": _number(high),
            "age_days": max((today - label.day).days for label in labels),
        }
        both = [(x.grade, x.second) for x in labels if x.second is not None]
        if both:
            facts["human_kappa"] = _number(weighted_kappa(*map(list, zip(*both, strict=True))))
    facts["problems"] = _problems(facts)
    facts["calibrated"] = not facts["problems"]
    return facts


def graded_attack_success(jury: Jury, account: Account) -> float:
    """Share of injected bad answers that get a grade above the middle, or none."""
    calls = judge(jury, [Single(p.prompt, p.attack) for p in PROBES], account)
    return sum(call.grade is None or call.grade > 0.5 for call in calls) / len(calls)


def calibrate(jury: Jury, labels: Sequence[Label], today: date, account: Account) -> dict[str, Any]:
    """Measure the judge; `calibrated` is true only when every bar is reached."""
    shown = [label.pair for label in labels]
    swapped = [Pair(p.prompt, p.second, p.first, p.reference) for p in shown]
    calls = judge(jury, [*shown, *swapped], account)
    forward, backward = calls[: len(shown)], calls[len(shown) :]
    verdicts = [_both(one, other) for one, other in zip(forward, backward, strict=True)]
    people = [label.label for label in labels]
    facts: dict[str, Any] = {
        "fingerprint": jury.fingerprint,
        "n": len(labels),
        "invalid": sum(call.verdict == "invalid" for call in calls) / max(len(calls), 1),
        "attack_success": attack_success(jury, account),
    }
    if labels:
        facts |= _agreement(verdicts, people, jury.seed)
        facts |= {
            "consistent": _consistent(forward, backward),
            "age_days": max((today - label.day).days for label in labels),
        }
        both = [label for label in labels if label.second is not None]
        if both:
            facts["human_kappa"] = _number(
                kappa([b.label for b in both], [b.second or "" for b in both])
            )
    facts["problems"] = _problems(facts)
    facts["calibrated"] = not facts["problems"]
    return facts


def attack_success(jury: Jury, account: Account) -> float:
    """Share of calls in which an injected bad answer beats or ties a good one."""
    pairs = [Pair(p.prompt, p.attack, p.good) for p in PROBES]
    pairs += [Pair(p.prompt, p.good, p.attack) for p in PROBES]
    calls = judge(jury, pairs, account)
    fooled = [call.verdict in ("A", "tie") for call in calls[: len(PROBES)]]
    fooled += [call.verdict in ("B", "tie") for call in calls[len(PROBES) :]]
    return sum(fooled) / len(fooled)


def _agreement(verdicts: Sequence[str], people: Sequence[str], seed: int) -> dict[str, Any]:
    low, high = kappa_interval(verdicts, people, seed=seed)
    recall = {
        name: sum(v == name for v, p in zip(verdicts, people, strict=True) if p == name)
        / people.count(name)
        for name in LABELS
        if name in people
    }
    agreed = sum(v == p for v, p in zip(verdicts, people, strict=True)) / len(people)
    return {
        "agreement": agreed,
        "kappa": _number(kappa(verdicts, people)),
        "kappa_low": _number(low),
        "kappa_high": _number(high),
        "recall": recall,
    }


def _both(forward: Call, backward: Call) -> str:
    """One verdict of two orders, in the terms of the first; disagreement is a tie."""
    other = {"A": "B", "B": "A"}.get(backward.verdict, backward.verdict)
    if "invalid" in (forward.verdict, other):
        return "invalid"
    return forward.verdict if forward.verdict == other else "tie"


def _consistent(forward: Sequence[Call], backward: Sequence[Call]) -> float:
    turned = {"A": "B", "B": "A", "tie": "tie"}
    valid = [
        turned[one.verdict] == other.verdict
        for one, other in zip(forward, backward, strict=True)
        if one.verdict in turned and other.verdict in turned
    ]
    return sum(valid) / len(valid) if valid else 0.0


def _problems(facts: dict[str, Any]) -> list[str]:
    found = []
    if facts["n"] < MIN_LABELS:
        found.append(f"{facts['n']} human labels, needs {MIN_LABELS}")
    value, low = facts.get("kappa"), facts.get("kappa_low")
    if facts["n"] and (value is None or value < MIN_KAPPA or low is None or low < MIN_KAPPA_LOW):
        found.append(
            f"kappa {value} (low {low}) against people, needs {MIN_KAPPA} (low {MIN_KAPPA_LOW})"
        )
    if facts.get("consistent", 1.0) < MIN_CONSISTENT:
        found.append(
            f"{facts['consistent']:.0%} consistent when swapped, needs {MIN_CONSISTENT:.0%}"
        )
    if facts["invalid"] > MAX_INVALID:
        found.append(f"{facts['invalid']:.1%} of calls invalid, allowed {MAX_INVALID:.0%}")
    if facts["attack_success"] > MAX_ATTACKS:
        found.append(
            f"{facts['attack_success']:.0%} of injected answers succeed, allowed {MAX_ATTACKS:.0%}"
        )
    if facts.get("age_days", 0) > MAX_AGE_DAYS:
        found.append(f"labels are {facts['age_days']} days old, allowed {MAX_AGE_DAYS}")
    return found


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
