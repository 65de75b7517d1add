"""Instructions that a program can check, in the manner of IFEval (Zhou et al. 2023, 2311.07911).

A sample carries them in its field `constraints`, as `[{"kind": "max_words", "value": 50}, ...]`.
The score is strict: 1 when all hold, else 0.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.words import words

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile("[.!?]+(?:\\s|$)|[\u3002\uff01\uff1f]+")


def _count(text: str, value: str) -> int:
    return text.casefold().count(value.casefold())


def _is_json(answer: str, _: Any) -> bool:
    try:
        json.loads(answer)
    except ValueError:
        return False
    return True


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "min_words": lambda answer, value: len(words(answer)) >= value,
    "max_words": lambda answer, value: len(words(answer)) <= value,
    "min_sentences": lambda answer, value: len(_SENTENCE_END.findall(answer)) >= value,
    "max_sentences": lambda answer, value: len(_SENTENCE_END.findall(answer)) <= value,
    "paragraphs": lambda answer, value: len(
        [part for part in re.split(r"\n\s*\n", answer) if part.strip()]
    ) == value,
    "bullets": lambda answer, value: len(_BULLET.findall(answer)) == value,
    "contains": lambda answer, value: _count(answer, value) > 0,
    "excludes": lambda answer, value: _count(answer, value) == 0,
    "mentions_at_least": lambda answer, value: _count(answer, value["text"]) >= value["times"],
    "starts_with": lambda answer, value: answer.strip().startswith(value),
    "ends_with": lambda answer, value: answer.strip().endswith(value),
    "lower_case": lambda answer, _: answer == answer.lower(),
    "upper_case": lambda answer, _: answer == answer.upper(),
    "no_commas": lambda answer, _: "," not in answer,
    "quoted": lambda answer, _: answer.strip()[:1] == '"' == answer.strip()[-1:],
    "title": lambda answer, _: re.search(r"<<[^<>\n]+>>", answer) is not None,
    "placeholders": lambda answer, value: len(re.findall(r"\[[^\[\]\n]+\]", answer)) >= value,
    "json": _is_json,
    "one_of": lambda answer, value: answer.strip() in value,
}  # fmt: skip
"""Kind -> (answer, value) -> whether it holds. An empty answer satisfies nothing."""


def satisfied(answer: str, constraints: Sequence[Mapping[str, Any]]) -> float:
    """1 when the answer is not empty and meets all.

    Raises InputError for a kind that is unknown or a value that does not fit it.
    """
    if not constraints:
        raise InputError("the sample has no constraints; give it a field `constraints`")
    results = [_holds(answer, constraint) for constraint in constraints]
    return float(bool(answer.strip()) and all(results))


def _holds(answer: str, constraint: Mapping[str, Any]) -> bool:
    kind = constraint.get("kind")
    if kind not in CHECKS:
        raise InputError(f"constraint {kind!r} is not known; use one of {', '.join(CHECKS)}")
    try:
        return CHECKS[kind](answer, constraint.get("value"))
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"constraint {kind} cannot take the value {constraint.get('value')!r}: {error}"
        ) from error
