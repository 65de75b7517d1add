"""Who was judged on which eval sets: trying again does not buy a pass.

A file of one JSON line per decision. The same candidate on the same scores keeps its verdict; other
candidates on the same eval sets are counted, because one of many passes by chance.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from trainyard.errors import InputError
from trainyard.files import digest_json


@dataclass(frozen=True, slots=True)
class Attempt:
    """One decision on one candidate."""

    model: str
    """Name of the recipe whose line of candidates it belongs to."""
    candidate: str
    """Digest of the candidate's weights."""
    items: str
    """Digest of the eval sets."""
    verdict: str


def sets_digest(sets: Mapping[str, str]) -> str:
    """What can be asked, wherever it lies and however much of it is: sha256 of the files' own."""
    return digest_json(sorted(sets.values()))


def others(path: Path, attempt: Attempt) -> int:
    """How many other candidates of this model were judged on the same sets."""
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
