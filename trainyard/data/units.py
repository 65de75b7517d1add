"""Text to units, compiled: words, or single characters in scripts written without spaces.

`_fold` writes letters and digits of a text, case folded, with zeros between units; `_hash_words`
hashes each run between zeros, eight bytes at a time.
"""

from typing import Any

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray

from trainyard.data.characters import CONTROL, oddity, script_of, wide
from trainyard.data.kernels import compiled

U64 = NDArray[np.uint64]
BASE = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW7, _TOP = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)
_GATHER = np.uint64(0x0002040810204081)
_ONE, _BYTE = np.uint64(1), np.uint8
# The lowest n bytes of a word, n up to 8.
_LOWEST = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


@compiled
def mix(x: Any) -> Any:
    """Finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


@compiled
def _is_ascii(text: Any, start: int, end: int) -> bool:
    piece = text[start:end]
    highest = _BYTE(0)
    for i in range(len(piece)):
        highest = max(highest, piece[i])
    return bool(highest < 128)


@compiled
def _fold_ascii(text: Any, start: int, end: int, out: Any) -> tuple[int, int]:
    """Whether there are letters, and whether there are control characters, as 0 or 1."""
    piece = text[start:end]
    letters, control = _BYTE(0), _BYTE(0)
    for i in range(len(piece)):  # bytes, selects and max only: this is what gets vectorised
        c = piece[i]
        low = _BYTE(c | _BYTE(32))
        letter = _BYTE(low - _BYTE(97)) < _BYTE(26)
        digit = _BYTE(c - _BYTE(48)) < _BYTE(10)
        out[i] = low if letter else (c if digit else _BYTE(0))
        letters = max(letters, _BYTE(1) if letter else _BYTE(0))
        bad = _BYTE(1) if c < _BYTE(32) else _BYTE(0)
        bad = _BYTE(0) if _BYTE(c - _BYTE(9)) < _BYTE(2) else bad
        bad = _BYTE(0) if c == _BYTE(13) else bad
        control = max(control, _BYTE(1) if c == _BYTE(127) else bad)
    return int(letters), int(control)


@compiled
def _fold(text: Any, start: int, end: int, out: Any, seen: Any) -> tuple[int, int, int, int]:
    """Write units of UTF-8 bytes [start, end) to `out` (twice as long), zeros between them.

    Adds letters per script to `seen` (for ASCII: one, if any). Returns bytes written, units that
    are one character, characters, and oddities as flags.
    """
    if _is_ascii(text, start, end):
        letters, control = _fold_ascii(text, start, end, out)
        seen[1] += letters
        return end - start, 0, end - start, control * CONTROL
    at, single, chars, odd, before = 0, 0, 0, 0, 0
    i = start
    while i < end:
        b = int(text[i])
        chars += 1
        if b < 128:
            low = b | 32
            letter = 97 <= low <= 122
            seen[1] += letter
            out[at] = low if letter else (b if 48 <= b <= 57 else 0)
            odd |= oddity(b, 0)
            before = 0
            at += 1
            i += 1
            continue
        c, width = wide(text, i)
        odd |= oddity(c, before)
        before = c
        script = script_of(c)
        if script == 0:
            out[at] = 0
            at += 1
            i += width
            continue
        seen[script] += 1
        alone = script == 2 or script == 5 or script == 6
        if alone:
            out[at] = 0
            at += 1
            single += 1
        if (0xC0 <= c <= 0xDE) or (0x410 <= c <= 0x42F) or (0x391 <= c <= 0x3A9):
            c += 32
            out[at], out[at + 1] = 0xC0 | c >> 6, 0x80 | c & 63
        else:
            for k in range(width):
                out[at + k] = text[i + k]
        at += width
        i += width
        if alone:
            out[at] = 0
            at += 1
    return at, single, chars, odd


@compiled
def next_full(words: Any, at: int) -> int:
    """The first byte from byte `at` of `words` on that is not 0; there must be one."""
    k = at >> 3
    x = words[k] >> np.uint64(8 * (at & 7))
    if x:
        return at + (int(trailing_zeros(x)) >> 3)
    k += 1
    while not words[k]:
        k += 1
    return 8 * k + (int(trailing_zeros(words[k])) >> 3)


@compiled
def _eight(words: Any, at: int) -> Any:
    """Bytes [at, at + 8) of `words`, which are aligned."""
    k, shift = at >> np.uint64(3), (at & np.uint64(7)) << np.uint64(3)
    return words[k] >> shift | (words[k + _ONE] << _ONE) << (np.uint64(63) - shift)


@compiled
def _word(words: Any, start: Any, size: Any) -> Any:
    """What `mix` makes the hash of a word of."""
    eight = np.uint64(8)
    x = _eight(words, start) & _LOWEST[min(size, eight)]
    while size > eight:
        start += eight
        size -= eight
        x = mix(x) ^ (_eight(words, start) & _LOWEST[min(size, eight)])
    return x


@compiled
def _hash_words(folded: Any, words: Any, size: int, edges: Any, out: Any) -> int:
    """Write the hash of each run of non-zero bytes of folded[:size] to `out`; returns how many.

    `words` is the same memory as 64-bit words. At least 64 bytes after `size` can be written.
    """
    folded[size : size + 64] = 0
    count, inside = 0, np.uint64(0)
    for block in range((size + 63) // 64 + (size % 64 == 0)):
        mask = np.uint64(0)
        for k in range(8):
            x = words[8 * block + k]
            full = ((x & _LOW7) + _LOW7 | x) & _TOP
            bits = (full >> np.uint64(7)) * _GATHER >> np.uint64(49) & np.uint64(255)
            mask |= bits << np.uint64(8 * k)
        turns = mask ^ (mask << _ONE | inside)
        inside = mask >> np.uint64(63)
        while turns:
            edges[count] = np.uint64(64 * block) + trailing_zeros(turns)
            turns &= turns - _ONE
            count += 1
    for i in range(count // 2):
        start = edges[2 * i]
        out[i] = _word(words, start, edges[2 * i + 1] - start)
    hashes = out[: count // 2]
    for i in range(len(hashes)):  # apart: this gets vectorised
        hashes[i] = mix(hashes[i])
    return count // 2


@compiled
def scratch(size: int) -> Any:
    """Memory for texts of up to `size` bytes: folded bytes, the same as words, edges, powers."""
    words = np.empty((2 * size + 192) // 8, np.uint64)
    power = np.ones(size + 3, np.uint64)
    for i in range(1, len(power)):
        power[i] = power[i - 1] * BASE
    return words.view(np.uint8), words, np.empty(2 * size + 4, np.uint64), power


@compiled
def units(text: Any, start: int, end: int, memory: Any, out: Any, seen: Any) -> Any:
    """Unit hashes of UTF-8 bytes [start, end), to `out`.

    Returns how many, how many of them are one character, characters, and oddities.
    """
    folded, words, edges, _ = memory
    size, single, chars, odd = _fold(text, start, end, folded, seen)
    return _hash_words(folded, words, size, edges, out), single, chars, odd
