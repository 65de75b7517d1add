"""What a gate answers: one record per gate and one decision over all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.recipe.gates import GateSpec


class Verdict(StrEnum):
    """PASS opens; the others block, each for its own reason.

    PENDING_HUMAN waits for people's answers: everything else has passed.
    """

    PASS = "PASS"
    PENDING_HUMAN = "PENDING_HUMAN"
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

    looks: Mapping[str, int] = field(default_factory=dict)
    """Suite -> at how many sizes its gates may be decided; absent means at one."""

    @classmethod
    def of(cls, spec: EvaluateSpec, *, attempts: int = 0, has_champion: bool = True) -> "Rules":
        limits = (spec.alpha, spec.seed, spec.max_invalid, spec.max_truncated)
        looks = {suite.name: 1 + len(suite.more) for suite in spec.suites}
        return cls(*limits, attempts, has_champion, looks)

    def alpha_of(self, gate: GateSpec, suites: Iterable[str]) -> float:
        """Level of one test: alpha split evenly over candidates and looks.

        By Bonferroni the looks together keep alpha for any bound and any dependence between them;
        equal levels are Pocock's design (1977, Biometrika 64:191), whose constant (0.0304 for two
        looks instead of 0.025) holds for normal scores only.
        """
        if gate.is_human:  # people are asked once
            return self.alpha
        looks = max((self.looks.get(suite, 1) for suite in suites), default=1)
        return self.alpha / gate.best_of / looks


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
    more_helps: bool = False
    """The interval is too wide for a verdict, so further items could bring one."""
    weak: bool = False
    """The estimate alone was compared (decision: point), or labels of unknown origin were used."""
    digest: str | None = None
    """sha256 of the scores that were read."""
    parts: tuple["GateResult", ...] = ()


class Look(Frozen):
    """One decision of a candidate that could draw more items."""

    verdict: Verdict
    items: dict[str, int]
    """Suite -> items that were asked."""
    undecided: tuple[str, ...]
    """Blocking gates that were INCONCLUSIVE."""


class Decision(Frozen):
    """The verdict over all blocking gates: every one must pass.

    An intersection-union test (Berger 1982): each gate at level alpha keeps the whole at alpha.
    """

    verdict: Verdict
    gates: tuple[GateResult, ...]
    reason: str
    warnings: tuple[str, ...] = ()
    looks: tuple["Look", ...] = ()
    """Every size at which this candidate was decided, this decision last."""
    attempts: int = 0
    """Other candidates that were judged on the same eval sets before this one."""
    alpha: float
    seed: int

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


_WORST_FIRST = (
    Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE, Verdict.PENDING_HUMAN, Verdict.PASS
)  # fmt: skip


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """PASS only when all pass; nothing at all is INVALID."""
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.INVALID)
