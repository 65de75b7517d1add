"""What was found over all rows, and whether the data may be trained on. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainyard.data.job import CODES
from trainyard.recipe.data import DataSpec

Verdict = Literal["pass", "warn", "refuse"]


@dataclass(frozen=True)
class Counts:
    lines: int
    train: int
    val: int
    quarantine: int
    reasons: Mapping[str, int]
    """Code -> lines that were set aside for it."""
    warnings: Mapping[str, int]
    """Code -> lines in train or val that show it."""
    scripts: Mapping[str, float] = field(default_factory=dict)
    """Script -> share of the answers kept."""
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DataVerdict:
    verdict: Verdict
    lines: int
    """Records read, blank lines included: the sum of train, val and quarantine."""
    train: int
    val: int
    quarantine: int
    reasons: dict[str, int]
    warnings: dict[str, int]
    duplicates: dict[str, int]
    leaks: int
    tokens: int
    """Of train and val, as encoded for training; 0 without a base model."""
    trained_tokens: int
    lost_tokens: int
    """What truncation will cut."""
    digest: str
    """sha256 over the sorted row ids of train and of val."""
    problems: tuple[str, ...]
    """Why it is refused, then what to look at."""
    out: str
    drift: dict[str, Any] | None = None
    """Against the previous version: its digest, rows added and removed, PSI per quantity."""

    @property
    def folder(self) -> Path:
        return Path(self.out)


def conserve(counts: Counts) -> None:
    """Raises AssertionError when a line was lost or counted twice."""
    kept = counts.train + counts.val + counts.quarantine
    if counts.lines != kept:
        raise AssertionError(
            f"{counts.lines} lines were read and {kept} written: {counts.train} train, "
            f"{counts.val} val, {counts.quarantine} quarantine"
        )


def judge(spec: DataSpec, counts: Counts) -> tuple[list[str], list[str]]:
    """Reasons to refuse, and reasons to warn, in sentences with their numbers."""
    refuse: list[str] = []
    found = {
        code: counts.reasons.get(code, 0) + counts.warnings.get(code, 0)
        for code in {*counts.reasons, *counts.warnings}
    }
    for code, action in spec.checks.model_dump().items():
        if action == "refuse" and found.get(code):
            refuse.append(f"{_lines(found[code])} with {code}, which the recipe refuses")
    if spec.over_length == "error" and found.get("over_length"):
        refuse.append(
            f"{_lines(found['over_length'])} longer than the longest sequence: set over_length"
        )
    blank = counts.reasons.get("blank_line", 0)
    unusable = sum(n for c, n in counts.reasons.items() if c not in CODES) - blank
    valid = 1 - unusable / max(counts.lines - blank, 1)
    if valid < spec.limits.min_valid and unusable > 1:  # one line is no rate
        refuse.append(f"valid lines are {valid:.2%}, below {spec.limits.min_valid:.2%}")
    if counts.train < spec.limits.min_rows:
        refuse.append(f"train has {counts.train:,} lines, below {spec.limits.min_rows:,}")
    for code, share in spec.max_share.items():
        if found.get(code, 0) > max(1, share * counts.lines):
            refuse.append(f"{code} is {found[code] / counts.lines:.2%} of lines, over {share:.2%}")
    for script, least in spec.limits.min_script_share.items():
        if counts.scripts.get(script, 0.0) < least:
            share = counts.scripts.get(script, 0.0)
            refuse.append(f"answers in {script} are {share:.1%}, below {least:.1%}")
    for script, most in spec.limits.max_script_share.items():
        if counts.scripts.get(script, 0.0) > most:
            refuse.append(f"answers in {script} are {counts.scripts[script]:.1%}, over {most:.1%}")
    for label, share in counts.labels.items():
        if share < spec.limits.min_label_share:
            refuse.append(
                f"label {label!r} is {share:.2%}, below {spec.limits.min_label_share:.2%}"
            )
    warn = [f"{_lines(n)} quarantined: {code}" for code, n in _ranked(counts.reasons)]
    warn += [f"{_lines(n)} kept with {code}" for code, n in _ranked(counts.warnings)]
    return refuse, warn


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _lines(n: int) -> str:
    return f"{n:,} line" if n == 1 else f"{n:,} lines"
