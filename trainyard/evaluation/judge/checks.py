"""Before any call: answers that are degenerate or speak to the judge, found without a model."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from trainyard.evaluation.words import words

MOST_EQUAL = 0.2
"""Share of answers that may be one and the same text before it counts as a constant."""

_SIGNS = {
    "a verdict in JSON": re.compile(r"[\"']verdict[\"']\s*:|\[\[\s*[ABC]\s*\]\]", re.IGNORECASE),
    "a chat template's token": re.compile(
        r"<\|[^|<>]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
    ),
    "invisible or direction-changing letters": re.compile(
        "[\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    ),
    "words to the judge": re.compile(
        r"(?:answer|response|option|assistant)\s+[AB]\s+(?:is|wins|should|must)\b"
        r"|\b(?:prefer|choose|pick|select)\s+(?:this|my|the\s+first|the\s+second)\s+"
        r"(?:answer|response|option)\b"
        r"|\bignore\s+(?:all\s+|the\s+)?(?:previous|above|other)\s+(?:instructions|answer)"
        r"|\bimpartial\s+judge\b",
        re.IGNORECASE,
    ),
}


def flags(
    answers: Mapping[str, str], others: Mapping[str, str], prompts: Mapping[str, str]
) -> dict[str, str]:
    """Item -> why its answer counts as lost and goes to people.

    What the prompt or the other answer shows as well is no sign: a request may be about tokens.
    """
    found = {}
    constant = _constant(list(answers.values()), list(others.values()))
    for item, text in answers.items():
        reason = _sign(text, others.get(item, "") + prompts.get(item, ""))
        if reason is None and " ".join(words(text)) in constant:
            reason = "the same answer to many different prompts"
        if reason is None and not text.strip():
            reason = "an empty answer"
        if reason is not None:
            found[item] = reason
    return found


def _sign(text: str, context: str) -> str | None:
    for name, pattern in _SIGNS.items():
        if pattern.search(text) and not pattern.search(context):
            return f"it holds {name}"
    return None


def _constant(answers: Sequence[str], others: Sequence[str]) -> set[str]:
    """Texts that more than a fifth of the answers are, unless the other arm says them as often."""
    if len(answers) < 10:
        return set()
    mine = Counter(" ".join(words(text)) for text in answers)
    theirs = Counter(" ".join(words(text)) for text in others)
    return {
        text
        for text, times in mine.items()
        if times > MOST_EQUAL * len(answers) and times > 2 * theirs[text]
    }
