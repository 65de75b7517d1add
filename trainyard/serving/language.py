"""Is the answer in another language than the question? A cheap guess that abstains when unsure.

Scripts are told by Unicode names; languages in Latin script by their commonest small words. Both
question and answer must be told with some certainty, and differ.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
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
_LANGUAGES: dict[str, list[str]] = {}
"""Of which languages a small word is."""
for _name, _words in _WORDS.items():
    for _word in _words.split():
        _LANGUAGES.setdefault(_word, []).append(_name)
_TOKEN = re.compile(r"[^\W\d_]+")
_SAMPLE_CHARS = 2000
_MIN_LETTERS = 12
_MIN_WORDS = 3


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


def guess(text: str) -> str | None:
    """A language of Latin script, or the name of another script; None when unsure."""
    words = _TOKEN.findall(text[:_SAMPLE_CHARS].lower())
    count = sum(map(len, words))
    if count < _MIN_LETTERS:
        return None
    if text.isascii():  # asking each letter for its script takes most of the time
        return _latin(words)
    script, most = Counter(_script(c) for word in words for c in word).most_common(1)[0]
    if most < 0.7 * count:
        return None
    return _latin(words) if script == "LATIN" else _east_asian(script)


def _east_asian(script: str) -> str:
    # Japanese mixes three scripts, and Chinese cannot be told from it by its characters alone
    return "CJK" if script in ("CJK", "HIRAGANA", "KATAKANA") else script


def _latin(words: Sequence[str]) -> str | None:
    hits = Counter(name for word in words for name in _LANGUAGES.get(word, ()))
    (best, most), (_, second) = [*hits.most_common(2), ("", 0), ("", 0)][:2]
    return best if most >= _MIN_WORDS and most >= 2 * second else None


def differs(question: str, answer: str) -> bool:
    told = guess(answer)  # often too short to tell, or not in words: then the question is not read
    asked = None if told is None else guess(question)
    if asked is None or told is None:
        return False
    latin = asked in _WORDS, told in _WORDS
    return asked != told if latin[0] == latin[1] else True
