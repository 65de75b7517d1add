"""Is the answer in another language than the question? A cheap guess that abstains when unsure.

Scripts are told by Unicode names; languages in Latin script by their commonest small words. Both
question and answer must be told with some certainty, and differ.
"""

import re
import unicodedata
from collections import Counter
from functools import cache

_WORDS = {
    "de": "der die das und ist nicht ein eine ich sie wir mit für auf wird sind haben bitte",
    "en": "the and is not you that with for this are have was please your they from will what",
    "es": "el los las y es que con para una por está usted como pero más este muchas del",
    "fr": "le les et est que des pour une dans avec vous sur pas nous votre être merci cette",
    "it": "il gli e che non per una con sono della questo grazie anche come più alla nel suo",
    "nl": "het een en is niet van voor met dat zijn u wij deze naar ook maar heeft wordt",
    "pt": "os as e é que não uma com para por você está seu mais como obrigado dos pelo",
}
_SMALL = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_TOKEN = re.compile(r"[^\W\d_]+")
_SAMPLE_CHARS = 2000
_MIN_LETTERS = 12
_MIN_WORDS = 3


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


def guess(text: str) -> str | None:
    """A language of Latin script, or the name of another script; None when unsure."""
    letters = [c for c in text[:_SAMPLE_CHARS] if c.isalpha()]
    if len(letters) < _MIN_LETTERS:
        return None
    script, count = Counter(map(_script, letters)).most_common(1)[0]
    if count < 0.7 * len(letters):
        return None
    return _latin(text) if script == "LATIN" else _east_asian(script)


def _east_asian(script: str) -> str:
    # Japanese mixes three scripts, and Chinese cannot be told from it by its characters alone
    return "CJK" if script in ("CJK", "HIRAGANA", "KATAKANA") else script


def _latin(text: str) -> str | None:
    words = [word.lower() for word in _TOKEN.findall(text[:_SAMPLE_CHARS])]
    hits = {name: sum(word in small for word in words) for name, small in _SMALL.items()}
    best, second = sorted(hits, key=hits.__getitem__, reverse=True)[:2]
    if hits[best] < _MIN_WORDS or hits[best] < 2 * hits[second]:
        return None
    return best


def differs(question: str, answer: str) -> bool:
    asked, told = guess(question), guess(answer)
    if asked is None or told is None:
        return False
    latin = asked in _SMALL, told in _SMALL
    return asked != told if latin[0] == latin[1] else True
