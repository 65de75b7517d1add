"""The two files between evaluation and gate: a score per item and arm, a judgement per call."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import InputError
from trainyard.files import write_text

ARMS = ("candidate", "base", "champion")
GUARD_RECALL = "guard_recall"
"""Metric of a guard's labelled examples: 1 when it found one."""


def guard_suite(suite: str) -> str:
    """Name under which a suite's labelled examples are scored; no recipe can give it to a suite."""
    return f"{suite}/guard"


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one item's answer; `value` is None when the item could not be scored."""

    id: str
    suite: str
    metric: str
    arm: str
    value: float | None
    cluster: str | None = None
    slice: tuple[str, ...] = ()
    """Slices that the item belongs to, each as `field=value`."""
    error: str | None = None
    weight: float = 1.0
    """Tokens (perplexity) or bytes (bits_per_byte) behind the value."""
    stats: tuple[float, ...] = ()
    """Sufficient statistics of a corpus metric: sums over items give the corpus score."""
    expected: str | None = None
    predicted: str | None = None
    truncated: bool = False
    """The answer was cut at max_tokens."""

    def as_row(self) -> dict[str, Any]:
        """The JSON line, without the fields that say nothing."""
        row = {key: value for key, value in asdict(self).items() if value != _DEFAULTS.get(key)}
        return {**row, "value": self.value}


_DEFAULTS = {
    "cluster": None,
    "slice": (),
    "error": None,
    "weight": 1.0,
    "stats": (),
    "expected": None,
    "predicted": None,
    "truncated": False,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One call of one juror: which of two answers is better, shown in one order.

    In order AB the candidate's answer is A, in order BA it is B. In order `single` the candidate's
    answer is graded alone: its verdict is `graded` or `invalid`.
    """

    id: str
    juror: str
    order: str
    verdict: str
    suite: str = ""
    opponent: str = ""
    cluster: str | None = None
    human: bool = False
    fingerprint: str | None = None
    calibrated: bool | None = None
    note: str | None = None
    """Why the verdict is invalid, or why it was given without asking."""
    answers: str | None = None
    """Digest of the answers that a person compared."""
    grade: float | None = None
    """Of an answer graded alone, in [0, 1]."""

    def as_row(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def read_scores(path: Path) -> list[Score]:
    """Read `scores.jsonl`. Raises InputError with file and line for a row that is not a score."""
    return [_score(row, where) for where, row in _rows(path)]


def read_judgements(path: Path) -> list[Judgement]:
    """Read `judgements.jsonl`. Raises InputError with file and line for a row that is none."""
    return [_judgement(row, where) for where, row in _rows(path)]


def write_rows(path: Path, rows: Iterable[Score] | Iterable[Judgement]) -> None:
    """Write all rows as JSON lines, atomically."""
    lines = [json.dumps(row.as_row(), ensure_ascii=False) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {_short(error)}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {_short(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} holds {type(row).__name__}, not an object")
        yield where, row


def _score(row: Mapping[str, Any], where: str) -> Score:
    value = row.get("value", "")
    if value is not None and not isinstance(value, (int, float)):
        raise InputError(f"{where} has value {value!r}; it must be a number or null")
    if isinstance(value, int) and abs(value) > 10**300:
        raise InputError(f"{where} has a value of more than 300 digits; no score is so large")
    arm = row.get("arm")
    if arm not in ARMS:
        raise InputError(f"{where} has arm {arm!r}; it must be one of {', '.join(ARMS)}")
    slices = row.get("slice") or []
    weight = row.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise InputError(f"{where} has weight {weight!r}; it must be a number of at least 0")
    return Score(
        id=_name(row, "id", where),
        suite=_name(row, "suite", where),
        metric=_name(row, "metric", where),
        arm=arm,
        value=None if value is None else float(value),
        cluster=_text(row.get("cluster")),
        slice=(str(slices),) if isinstance(slices, (str, int, float)) else _texts(slices, where),
        error=_text(row.get("error")),
        weight=float(weight),
        stats=_numbers(row.get("stats") or (), where),
        expected=_text(row.get("expected")),
        predicted=_text(row.get("predicted")),
        truncated=row.get("truncated") is True,
    )


def _judgement(row: Mapping[str, Any], where: str) -> Judgement:
    order, verdict = row.get("order"), row.get("verdict")
    if order not in ("AB", "BA", "single"):
        raise InputError(f"{where} has order {order!r}; it must be AB, BA or single")
    grade = row.get("grade")
    if order == "single" and (not isinstance(grade, (int, float)) or not 0 <= grade <= 1):
        grade, verdict = None, "invalid"
    known = ("graded",) if order == "single" else ("A", "B", "tie")
    return Judgement(
        id=_name(row, "id", where),
        juror=str(row.get("juror", "")),
        order=order,
        verdict=str(verdict) if verdict in known else "invalid",
        suite=str(row.get("suite", "")),
        opponent=str(row.get("opponent", "")),
        cluster=_text(row.get("cluster")),
        human=row.get("human") is True,
        fingerprint=_text(row.get("fingerprint")),
        calibrated=row.get("calibrated") if isinstance(row.get("calibrated"), bool) else None,
        note=_text(row.get("note")),
        answers=_text(row.get("answers")),
        grade=None if grade is None or verdict not in known else float(grade),
    )


def _name(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InputError(f"{where} has {key} {value!r}; it must be a text")
    return str(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, dict):
        return tuple(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    raise InputError(f"{where} has slice {value!r}; it must be a text, a list or an object")


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or any(
        isinstance(x, bool) or not isinstance(x, (int, float)) for x in value
    ):
        raise InputError(f"{where} has stats {value!r}; it must be a list of numbers")
    return tuple(float(x) for x in value)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
