"""Units of text, their n-grams and MinHash signatures, in one compiled pass per batch of rows.

A unit is a word (letters and digits, case folded) or, in scripts written without spaces, one
character. Grams are 3 words or 5 characters for similarity, 13 and 8 units for leakage.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.kernels import compiled

BANDS, BAND_ROWS = 16, 6
SCRIPTS = (
    "none", "latin", "han", "cyrillic", "arabic", "thai", "kana", "hangul", "devanagari", "other",
)  # fmt: skip
CONTROL, MOJIBAKE = 1, 2
LONG_GRAM, PROMPT_GRAM = 13, 8

U64 = NDArray[np.uint64]
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_PRIME, _BASE = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)
_SEED = np.uint64(0xCBF29CE484222325)


def _lower(c: int) -> int:
    return ord(chr(c).lower()) if chr(c).isalnum() else 0


@compiled
def mix(x: Any) -> Any:
    """Finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


@compiled
def _script(c: int) -> int:
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
def _folded(c: int) -> int:
    if (0xC0 <= c <= 0xDE) or (0x410 <= c <= 0x42F) or (0x391 <= c <= 0x3A9):
        return c + 32
    return c


@compiled
def _odd(c: int, before: int) -> int:
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


# ASCII: what a character adds to a word (0 ends it), and whether it is a letter.
_FOLD = np.array([_lower(c) for c in range(128)], np.uint64)
_LETTER = np.array([chr(c).isalpha() for c in range(128)], np.int64)


@compiled
def _wide(text: Any, i: int) -> tuple[int, int]:
    """Code point and bytes of the UTF-8 sequence of two bytes or more at `i`."""
    b = int(text[i])
    if b < 224:
        return (b & 31) << 6 | int(text[i + 1]) & 63, 2
    if b < 240:
        return (b & 15) << 12 | (int(text[i + 1]) & 63) << 6 | int(text[i + 2]) & 63, 3
    high = (b & 7) << 18 | (int(text[i + 1]) & 63) << 12
    return high | (int(text[i + 2]) & 63) << 6 | int(text[i + 3]) & 63, 4


@compiled
def units(text: Any, start: int, end: int, out: Any, seen: Any) -> tuple[int, int, int, int]:
    """Write unit hashes of UTF-8 bytes [start, end) to `out`, and count letters per script.

    Returns units, how many of them are single characters, characters, and oddities as flags.
    """
    n, single, chars, odd, before, latin = 0, 0, 0, 0, 0, 0
    word = _SEED
    i = start
    while i < end:
        b = text[i]
        chars += 1
        if b < 128:
            i += 1
            folded = _FOLD[b]
            if folded:
                word = (word ^ folded) * _PRIME
                latin += _LETTER[b]
                continue
            if word != _SEED:
                out[n] = mix(word)
                n += 1
                word = _SEED
            if b < 32 or b == 127:
                odd |= _odd(b, 0)
            before = 0
            continue
        c, width = _wide(text, i)
        i += width
        odd |= _odd(c, before)
        before = c
        script = _script(c)
        alone = script == 2 or script == 5 or script == 6
        if (script == 0 or alone) and word != _SEED:
            out[n] = mix(word)
            n += 1
            word = _SEED
        if script == 0:
            continue
        seen[script] += 1
        if alone:
            out[n] = mix(np.uint64(c) * _BASE)
            n += 1
            single += 1
        else:
            word = (word ^ np.uint64(_folded(c))) * _PRIME
    if word != _SEED:
        out[n] = mix(word)
        n += 1
    seen[1] += latin
    return n, single, chars, odd


@compiled
def grams(unit: Any, start: int, end: int, k: int, out: Any) -> int:
    """Hashes of the k-grams of units [start, end); of all of them together when fewer than k."""
    n = end - start
    if n <= 0:
        return 0
    if n < k:
        k = n
    top = np.uint64(1)
    for _ in range(k - 1):
        top *= _BASE
    rolling = np.uint64(0)
    count = 0
    for i in range(start, end):
        rolling = rolling * _BASE + unit[i]
        if i - start >= k - 1:
            out[count] = mix(rolling)
            count += 1
            rolling -= unit[i - k + 1] * top
    return count


@compiled
def contains(table: Any, bits: Any, x: Any) -> bool:
    """Whether sorted `table` holds `x`; `bits` is a bitmap over the upper 20 bits of it."""
    if not bits[x >> np.uint64(44)]:
        return False
    low, high = 0, len(table)
    while low < high:
        middle = (low + high) >> 1
        if table[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low < len(table) and table[low] == x


@compiled
def _signature(gram: Any, count: int, mul: Any, add: Any, current: Any) -> None:
    """MinHash (Broder 1997) by random affine maps of 32-bit hashes."""
    current[:] = np.uint32(0xFFFFFFFF)
    for j in range(count):
        x = np.uint32(gram[j] >> np.uint64(32))
        for p in range(len(mul)):
            current[p] = min(current[p], np.uint32(mul[p] * x + add[p]))


@compiled
def _repeats(unit: Any, start: int, end: int, gram: Any, slots: Any) -> float:
    """Share of 4-grams of units [start, end) that occurred before in it."""
    count = grams(unit, start, end, 4, gram)
    if end - start < 24:
        return 0.0
    size = 64
    while size < 2 * count:
        size *= 2
    slots[:size] = 0
    repeated = 0
    for i in range(count):
        x = gram[i] | np.uint64(1)
        at = int(x >> np.uint64(32)) & (size - 1)
        while slots[at] != 0 and slots[at] != x:
            at = (at + 1) & (size - 1)
        if slots[at] == x:
            repeated += 1
        slots[at] = x
    return repeated / count


@compiled
def _hits(gram: Any, count: int, table: Any, bits: Any) -> int:
    found = 0
    for i in range(count):
        if contains(table, bits, gram[i]):
            found += 1
    return found


@compiled
def _kept(gram: Any, count: int, common: Any, bits: Any) -> int:
    """Drop grams that are common in this data; with none left, one for the whole stays."""
    whole = np.uint64(0)
    n = 0
    for i in range(count):
        whole = mix(whole ^ gram[i])
        if not contains(common, bits, gram[i]):
            gram[n] = gram[i]
            n += 1
    if n == 0 and count:
        gram[0] = whole
        n = 1
    return n


@compiled
def _sequence(unit: Any, start: int, end: int) -> Any:
    x = np.uint64(end - start)
    for i in range(start, end):
        x = mix(x ^ unit[i])
    return x


@compiled
def _main_script(seen: Any) -> int:
    best = 0
    for s in range(1, len(seen)):
        if seen[s] > (seen[best] if best else 0):
            best = s
    if best == 2 and seen[6] * 10 > seen[2]:
        return 6
    return best


@compiled
def scan(
    text: Any, bounds: Any, mul: Any, add: Any, common: Any, common_bits: Any,
    eval13: Any, bits13: Any, eval8: Any, bits8: Any, out: Any, bands: Any,
) -> None:  # fmt: skip
    """One pass over rows: row r is prompt [bounds[r, 0], [r, 1]) and answer [[r, 1], [r, 2])."""
    longest = 0
    for r in range(len(bounds)):
        longest = max(longest, bounds[r, 2] - bounds[r, 0])
    unit = np.empty(longest + 2, np.uint64)
    gram = np.empty(longest + 2, np.uint64)
    slots = np.zeros(4 * longest + 128, np.uint64)
    current = np.empty(len(mul), np.uint32)
    seen, unseen = np.zeros(10, np.int64), np.zeros(10, np.int64)
    for r in range(len(bounds)):
        begin, middle, end = bounds[r, 0], bounds[r, 1], bounds[r, 2]
        seen[:] = 0
        asked, alone, prompt_chars, odd = units(text, begin, middle, unit, unseen)
        more, alone2, answer_chars, odd2 = units(text, middle, end, unit[asked:], seen)
        total = asked + more
        spaceless = 2 * (alone + alone2) > total
        row = out[r]
        row.prompt_chars, row.answer_chars, row.units = prompt_chars, answer_chars, total
        row.odd = odd | odd2
        row.script = _main_script(seen)
        row.prompt_hash = _sequence(unit, 0, asked)
        row.answer_hash = _sequence(unit, asked, total)
        row.repeats = _repeats(unit, asked, total, gram, slots)
        if len(eval13):
            n = grams(unit, 0, total, LONG_GRAM, gram)
            row.hits = _hits(gram, n, eval13, bits13)
            if not spaceless:
                n = grams(unit, 0, asked, PROMPT_GRAM, gram)
                row.hits += _hits(gram, n, eval8, bits8)
        n = grams(unit, 0, total, 5 if spaceless else 3, gram)
        n = _kept(gram, n, common, common_bits)
        row.grams = n
        _signature(gram, n, mul, add, current)
        for b in range(BANDS):
            x = np.uint64(b + 1)
            for c in range(BAND_ROWS):
                x = mix(x ^ np.uint64(current[b * BAND_ROWS + c]))
            bands[b, r] = x


SCANNED = np.dtype(
    [
        ("prompt_chars", np.int32),
        ("answer_chars", np.int32),
        ("units", np.int32),
        ("grams", np.int32),
        ("hits", np.int32),
        ("odd", np.uint8),
        ("script", np.uint8),
        ("prompt_hash", np.uint64),
        ("answer_hash", np.uint64),
        ("repeats", np.float32),
    ]
)


def bitmap(table: U64) -> NDArray[np.uint8]:
    bits = np.zeros(1 << 20, np.uint8)
    bits[table >> np.uint64(44)] = 1
    return bits


@dataclass
class Scanner:
    """`scan` with its tables: grams common in the data, and those of evaluation samples."""

    common: U64
    eval13: U64
    eval8: U64

    def __post_init__(self) -> None:
        rng = np.random.default_rng(20251120)
        self.mul = (rng.integers(0, 2**31, BANDS * BAND_ROWS) * 2 + 1).astype(np.uint32)
        self.add = rng.integers(0, 2**32, BANDS * BAND_ROWS).astype(np.uint32)
        tables = (self.common, self.eval13, self.eval8)
        self.tables = [part for table in tables for part in (table, bitmap(table))]

    def scan(self, texts: list[tuple[bytes, bytes]]) -> tuple[Any, U64]:
        """SCANNED per (prompt, answer), and band hashes [BANDS, rows]."""
        flat = list(chain.from_iterable(texts))
        sizes = np.fromiter(map(len, flat), np.int64, len(flat))
        ends = np.cumsum(sizes)
        bounds = np.zeros((len(texts), 3), np.int64)
        bounds[1:, 0] = ends[1:-1:2]
        bounds[:, 1], bounds[:, 2] = ends[0::2], ends[1::2]
        joined = np.frombuffer(b"".join(flat), np.uint8)
        out = np.recarray(len(texts), SCANNED)
        out.view(np.uint8).fill(0)
        bands = np.empty((BANDS, len(texts)), np.uint64)
        run: Any = scan
        run(joined, bounds, self.mul, self.add, *self.tables, out, bands)
        return out, bands


def distinct(values: U64) -> U64:
    """Sorted, each once. `np.unique` hashes first, which takes five times as long here."""
    ranked = np.sort(values)
    new = np.ones(len(ranked), bool)
    np.not_equal(ranked[1:], ranked[:-1], out=new[1:])
    return ranked[new]


def unit_hashes(text: bytes) -> tuple[U64, bool]:
    """Units of one text, and whether most are single characters."""
    content = np.frombuffer(text, np.uint8)
    out = np.empty(len(content) + 2, np.uint64)
    n, single, _, _ = units(content, 0, len(content), out, np.zeros(10, np.int64))
    return out[:n].copy(), 2 * single > n


def gram_hashes(unit: U64, k: int) -> U64:
    out = np.empty(len(unit) + 1, np.uint64)
    return out[: grams(unit, 0, len(unit), k, out)].copy()


@compiled
def _distinct(prompt: Any, answer: Any, common: Any) -> Any:
    unit = np.empty(len(prompt) + len(answer) + 2, np.uint64)
    seen = np.zeros(10, np.int64)
    asked, alone, _, _ = units(prompt, 0, len(prompt), unit, seen)
    told, alone2, _, _ = units(answer, 0, len(answer), unit[asked:], seen)
    total = asked + told
    found = np.empty(total + 1, np.uint64)
    found = np.sort(found[: grams(unit, 0, total, 5 if 2 * (alone + alone2) > total else 3, found)])
    n = kept = 0
    distinct = np.empty(len(found), np.uint64)
    rare = np.empty(len(found), np.uint64)
    for i in range(len(found)):
        if i and found[i] == found[i - 1]:
            continue
        distinct[n] = found[i]
        n += 1
        at = np.searchsorted(common, found[i])
        if at == len(common) or common[at] != found[i]:
            rare[kept] = found[i]
            kept += 1
    return rare[:kept] if kept else distinct[:n]


@compiled
def _jaccard(one: Any, other: Any) -> float:
    i = j = shared = 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            shared += 1
            i += 1
            j += 1
        elif one[i] < other[j]:
            i += 1
        else:
            j += 1
    together = len(one) + len(other) - shared
    return shared / together if together else 1.0


def shingle_set(prompt: bytes, answer: bytes, common: U64) -> U64:
    """Sorted distinct grams by which two rows are compared, as `scan` chooses them."""
    one, other = np.frombuffer(prompt, np.uint8), np.frombuffer(answer, np.uint8)
    found: U64 = _distinct(one, other, common)
    return found


def jaccard(one: U64, other: U64) -> float:
    """Similarity of two sorted sets; of two empty ones, 1."""
    return float(_jaccard(one, other))


def warm() -> None:
    """Load or compile every kernel, so that a first batch is not slower than the others."""
    nothing = np.empty(0, np.uint64)
    one = np.ones(1, np.uint64)
    Scanner(nothing, one, one).scan([(b"a", b"b")])
    one_set = shingle_set(b"a", b"b", nothing)
    jaccard(one_set, one_set)
