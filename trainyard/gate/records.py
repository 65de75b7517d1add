"""What a gate answers: one record per gate and one decision over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import EvaluateSpec


class Verdict(StrEnum):
    """PASS opens; the others block, each for its own reason."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True)
class Rules:
    """What all gates of one decision share."""

    alpha: float = 0.05
    seed: int = 20261120
    max_invalid: float = 0.0
    max_truncated: float = 0.05
    attempts: int = 0
    """Other candidates that were judged on the same eval sets before this one."""
    has_champion: bool = True
    """Whether there is a champion: without one, gates that compare with it are left out."""

    @classmethod
    def of(cls, spec: EvaluateSpec, *, attempts: int = 0, has_champion: bool = True) -> "Rules":
        limits = (spec.alpha, spec.seed, spec.max_invalid, spec.max_truncated)
        return cls(*limits, attempts, has_champion)


class GateResult(Frozen):
    """One gate's verdict with the evidence for it."""

    id: str
    metric: str
    verdict: Verdict
    severity: str = "block"
    reason: str
    next: str | None = None
    """What to do when the verdict is not PASS."""
    suite: str | None = None
    against: str | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    clusters: int | None = None
    invalid: int = 0
    op: str | None = None
    threshold: float | None = None
    method: str | None = None
    alpha: float | None = None
    seed: int | None = None
    needed: int | None = None
    """Items with which this estimate would decide, where more items can."""
    weak: bool = False
    """The estimate alone was compared (decision: point), or labels of unknown origin were used."""
    digest: str | None = None
    """sha256 of the scores that were read."""
    parts: tuple["GateResult", ...] = ()


class Decision(Frozen):
    """The verdict over all blocking gates: every one must pass.

    An intersection-union test (Berger 1982): each gate at level alpha keeps the whole at alpha.
    """

    verdict: Verdict
    gates: tuple[GateResult, ...]
    reason: str
    warnings: tuple[str, ...] = ()
    alpha: float
    seed: int

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


_WORST_FIRST = (Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE, Verdict.PASS)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """PASS only when all pass; nothing at all is INVALID."""
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.INVALID)
