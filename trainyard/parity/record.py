"""What a parity check leaves in `parity.json`: one record per step, and the probes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from trainyard.errors import InputError
from trainyard.files import read_json
from trainyard.recipe.base import Frozen

FILE = "parity.json"

StepName = Literal["template", "adapter", "precision", "merge", "server"]
"""In the order in which a trained adapter passes them on its way to an answer."""


class Step(Frozen):
    """One step from the trainer's process to the answer of the server."""

    name: StepName
    verdict: Literal["ok", "broken", "not measured"]
    reason: str
    gap: float | None = None
    """Mean absolute difference of the log-probability per token, in nats."""
    limit: float | None = None
    """Largest gap that is tolerated."""
    agreement: float | None = None
    """Share of the tokens that are the first choice of both sides."""


class Probe(Frozen):
    """A question, and what the server that was evaluated answered to it, greedily."""

    messages: tuple[dict[str, Any], ...]
    max_tokens: int
    prompt_tokens: int
    answer: str
    margin: float | None = None
    """Smallest lead of a token of the answer over the second choice, in nats."""


class Parity(Frozen):
    steps: tuple[Step, ...]
    probes: tuple[Probe, ...]
    tokens: int
    """Tokens of all answers."""
    candidate: str
    """sha256 of the adapter."""

    @property
    def broken(self) -> Step | None:
        """The first step that did not prove itself."""
        return next((step for step in self.steps if step.verdict != "ok"), None)

    @property
    def surest(self) -> Probe:
        """The probe whose answer depends least on rounding."""
        return max(self.probes, key=lambda probe: (probe.margin or 0.0, bool(probe.answer)))


def read(folder: Path) -> Parity | None:
    """Return the record beside an evaluation's scores; None where there is none.

    Raises InputError for a file that is no such record.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Parity.model_validate(read_json(path))
    except (ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path} is no parity record: {first}") from error
