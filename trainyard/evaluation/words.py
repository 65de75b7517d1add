"""Words of any script, and text made comparable: the base of every overlap metric."""

import unicodedata

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def words(text: str) -> list[str]:
    """Lower-case words; in scripts without spaces every letter with its marks is one.

    Letters, marks and digits of all scripts count: the usual `[a-z0-9]` tokenizer scores identical
    Chinese or Russian texts 0.
    """
    found: list[str] = []
    open_word = False
    for char in unicodedata.normalize("NFC", text).casefold():
        kind = unicodedata.category(char)[0]
        if kind == "M" and found and open_word:
            found[-1] += char
        elif kind not in "LMN":
            open_word = False
        elif _unspaced(char):
            found.append(char)
            open_word = True
        elif open_word and not _unspaced(found[-1][0]):
            found[-1] += char
        else:
            found.append(char)
            open_word = True
    return found


def normal(text: str) -> str:
    """NFKC, lower case, single spaces, without punctuation or symbols at either end."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    kept = [i for i, char in enumerate(folded) if unicodedata.category(char)[0] not in "PSZ"]
    return folded[kept[0] : kept[-1] + 1] if kept else folded


def _unspaced(char: str) -> bool:
    code = ord(char)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _UNSPACED)
