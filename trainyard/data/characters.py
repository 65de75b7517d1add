"""What a character is: its script, whether it is a sign of damage; compiled."""

from typing import Any

from trainyard.data.kernels import compiled

SCRIPTS = (
    "none", "latin", "han", "cyrillic", "arabic", "thai", "kana", "hangul", "devanagari", "other",
)  # fmt: skip
CONTROL, MOJIBAKE = 1, 2


@compiled
def script_of(c: int) -> int:
    """Index into SCRIPTS of a letter beyond ASCII; 0 for what separates words."""
    if c < 0x250 or 0x1E00 <= c < 0x1F00:
        return 0 if c < 0xC0 or c == 0xD7 or c == 0xF7 else 1
    if 0x400 <= c < 0x530:
        return 3
    if 0x600 <= c < 0x780 or 0xFB50 <= c < 0xFE00 or 0xFE70 <= c < 0xFEFF:
        return 0 if c == 0x60C or c == 0x61B or c == 0x61F else 4
    if 0x900 <= c < 0x980:
        return 0 if c == 0x964 or c == 0x965 else 8
    if 0xE00 <= c < 0xF00 or 0x1000 <= c < 0x10A0 or 0x1780 <= c < 0x1800:
        return 5
    if 0x1100 <= c < 0x1200 or 0xAC00 <= c < 0xD7B0:
        return 7
    if 0x3040 <= c < 0x3100 or 0x31F0 <= c < 0x3200 or 0xFF66 <= c < 0xFFA0:
        return 6
    if 0x3400 <= c < 0x4DC0 or 0x4E00 <= c < 0xA000 or 0xF900 <= c < 0xFB00 or c >= 0x20000:
        return 2
    if 0x2000 <= c < 0x2070 or 0x3000 <= c < 0x3040 or c >= 0xFE00 or 0x2190 <= c < 0x2C00:
        return 0
    return 9


@compiled
def oddity(c: int, before: int) -> int:
    """CONTROL or MOJIBAKE when character `c` after `before` is a sign of it, else 0."""
    if c < 32:
        return 0 if c == 9 or c == 10 or c == 13 else CONTROL
    if c < 127:
        return 0
    if c == 127 or c == 0x200B or c == 0xFEFF or 0x202A <= c <= 0x202E or 0x2066 <= c <= 0x2069:
        return CONTROL
    if c == 0xFFFD:
        return MOJIBAKE
    if (before == 0xC3 or before == 0xC2) and 0x80 <= c <= 0xBF:
        return MOJIBAKE
    if before == 0xE2 and (c == 0x20AC or 0x80 <= c <= 0x9F):
        return MOJIBAKE
    return 0


@compiled
def wide(text: Any, i: int) -> tuple[int, int]:
    """Code point and bytes of the UTF-8 sequence of two bytes or more at `i`."""
    b = int(text[i])
    if b < 224:
        return (b & 31) << 6 | int(text[i + 1]) & 63, 2
    if b < 240:
        return (b & 15) << 12 | (int(text[i + 1]) & 63) << 6 | int(text[i + 2]) & 63, 3
    high = (b & 7) << 18 | (int(text[i + 1]) & 63) << 12
    return high | (int(text[i + 2]) & 63) << 6 | int(text[i + 3]) & 63, 4
