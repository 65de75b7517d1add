"""Who was judged on which eval sets: trying again does not buy a pass.

A file of one JSON line per decision. The same candidate on the same scores keeps its verdict; other
candidates on the same eval sets are counted, because one of many passes by chance.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from trainyard.errors import InputError
from trainyard.evaluation.scores import Score
from trainyard.files import digest_json


@dataclass(frozen=True, slots=True)
class Attempt:
    """One decision on one candidate."""

    model: str
    """Name of the recipe whose line of candidates it belongs to."""
    candidate: str
    """Digest of the candidate's weights."""
    items: str
    """Digest of what was asked: suites and ids of all samples."""
    verdict: str


def items_digest(scores: Iterable[Score]) -> str:
    """What was asked, whoever answered: sha256 over suites and ids."""
    return digest_json(sorted({(score.suite, score.id) for score in scores}))


def others(path: Path, attempt: Attempt) -> int:
    """How many other candidates of this model were judged on the same items."""
    return len(
        {
            past.candidate
            for past in read(path)
            if (past.model, past.items) == (attempt.model, attempt.items)
            and past.candidate != attempt.candidate
        }
    )


def record(path: Path, attempt: Attempt) -> None:
    """Append the decision, unless exactly it is there."""
    if attempt in read(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(attempt)) + "\n")


def read(path: Path) -> list[Attempt]:
    """All decisions so far. Raises InputError for a line that is none."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}:{number} is no attempt: {error}; remove the line") from error
    return found
