"""One compiled pass per batch of rows: sizes, script, oddities, hits, MinHash signature.

Grams are 3 words or 5 characters for similarity, 13 and 8 units for leakage, 4 for repetition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.grams import (
    LONG_GRAM,
    PROMPT_GRAM,
    Table,
    contained,
    grams,
    prefixes,
    table_of,
    without,
)
from trainyard.data.kernels import compiled, lent
from trainyard.data.patterns import SEPARATOR
from trainyard.data.units import BASE, U64, mix, scratch, units

BANDS, BAND_ROWS = 16, 6
FEW_REPEATS = 0.4
"""Shares of repeated 4-grams up to here are given as 0."""


@compiled
def _sign(gram: Any, count: int, mul: Any, add: Any, lowest: Any, bands: Any) -> None:
    """MinHash (Broder 1997) by random affine maps of 32-bit hashes, and its band hashes."""
    lowest[:] = np.uint32(0xFFFFFFFF)
    for j in range(0, count, 4):  # four at once: fewer looks at what does not change
        a = np.uint32(gram[j] >> np.uint64(32))
        b = np.uint32(gram[min(j + 1, count - 1)] >> np.uint64(32))
        c = np.uint32(gram[min(j + 2, count - 1)] >> np.uint64(32))
        d = np.uint32(gram[min(j + 3, count - 1)] >> np.uint64(32))
        for p in range(len(mul)):
            m, n, low = mul[p], add[p], lowest[p]
            h = np.uint32(np.uint32(m * a) + n)
            low = h if h < low else low
            h = np.uint32(np.uint32(m * b) + n)
            low = h if h < low else low
            h = np.uint32(np.uint32(m * c) + n)
            low = h if h < low else low
            h = np.uint32(np.uint32(m * d) + n)
            lowest[p] = h if h < low else low
    for k in range(BANDS):
        rolling = np.uint64(k + 1)
        for i in range(BAND_ROWS):
            rolling = rolling * BASE + np.uint64(lowest[i * BANDS + k])
        bands[k] = mix(rolling)


@compiled
def _repeats(gram: Any, count: int, seen: Any) -> float:
    """Share of grams that occurred before; 0 when a bitmap shows that it is small."""
    seen[:] = 0
    different = 0
    for i in range(count):
        at = gram[i] >> np.uint64(52)
        different += 1 - seen[at]
        seen[at] = 1
    if count - different <= FEW_REPEATS * count:
        return 0.0
    ranked = np.sort(gram[:count])
    again = 0
    for i in range(1, count):
        again += ranked[i] == ranked[i - 1]
    return again / count


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
def _rows(text: Any, bounds: Any, tables: Any, rooms: Any, out: Any, bands: Any) -> None:
    text, bounds, out, bands = lent(text), lent(bounds), lent(out), lent(bands)
    mul, add, common, long, short = lent(tables)
    memory, unit, prefix, gram, marks, lowest, band, asked_seen, seen = lent(rooms)
    power = memory[3]
    for r in range(len(bounds)):
        begin, middle, end = bounds[r, 0], bounds[r, 1], bounds[r, 2]
        asked_seen[:] = 0
        seen[:] = 0
        asked, alone, prompt_chars, odd = units(text, begin, middle, memory, unit, asked_seen)
        told, alone2, answer_chars, odd2 = units(text, middle + 1, end, memory, unit[asked:], seen)
        total = asked + told
        spaceless = 2 * (alone + alone2) > total
        prefixes(unit, total, prefix)
        row = out[r]
        row.prompt_chars, row.answer_chars, row.units = prompt_chars, answer_chars, total
        row.odd = odd | odd2
        row.prompt_script, row.script = _main_script(asked_seen), _main_script(seen)
        row.prompt_hash = mix(prefix[asked] ^ mix(np.uint64(asked)))
        answer = prefix[total] - prefix[asked] * power[told]
        row.answer_hash = mix(answer ^ mix(np.uint64(told)))
        if told >= 24:
            n = grams(prefix, asked, total, 4, power, gram)
            row.repeats = _repeats(gram, n, marks)
        if len(long[0]):
            n = grams(prefix, 0, total, LONG_GRAM, power, gram)
            row.hit = contained(long, gram, n)
            if not spaceless and not row.hit:
                n = grams(prefix, 0, asked, PROMPT_GRAM, power, gram)
                row.hit = contained(short, gram, n)
        n = grams(prefix, 0, total, 5 if spaceless else 3, power, gram)
        n = without(common, gram, n)
        row.grams = n
        _sign(gram, n, mul, add, lowest, band)
        for b in range(BANDS):
            bands[b, r] = band[b]


@compiled
def scan(
    text: Any, bounds: Any, mul: Any, add: Any, common: Any, long: Any, short: Any, out: Any,
    bands: Any,
) -> None:  # fmt: skip
    """One pass over rows: prompt [bounds[r, 0], [r, 1]) and answer [[r, 1] + 1, [r, 2]) of each."""
    longest = 0
    for r in range(len(bounds)):
        longest = max(longest, bounds[r, 2] - bounds[r, 0])
    unit, prefix = np.empty(longest + 3, np.uint64), np.empty(longest + 4, np.uint64)
    gram, marks = np.empty(longest + 3, np.uint64), np.empty(1 << 12, np.uint8)
    lowest, band = np.empty(len(mul), np.uint32), np.empty(BANDS, np.uint64)
    seen = np.zeros(10, np.int64), np.zeros(10, np.int64)
    rooms = scratch(longest), unit, prefix, gram, marks, lowest, band, *seen
    _rows(text, bounds, (mul, add, common, long, short), rooms, out, bands)


SCANNED = np.dtype(
    [
        ("prompt_chars", np.int32),
        ("answer_chars", np.int32),
        ("units", np.int32),
        ("grams", np.int32),
        ("hit", np.bool_),
        ("odd", np.uint8),
        ("prompt_script", np.uint8),
        ("script", np.uint8),
        ("prompt_hash", np.uint64),
        ("answer_hash", np.uint64),
        ("repeats", np.float32),
    ]
)


@dataclass
class Scanner:
    """`scan` with its tables: grams common in the data, and those of evaluation samples."""

    common: U64
    long: U64
    short: U64

    def __post_init__(self) -> None:
        rng = np.random.default_rng(20251120)
        self.mul = (rng.integers(0, 2**31, BANDS * BAND_ROWS) * 2 + 1).astype(np.uint32)
        self.add = rng.integers(0, 2**32, BANDS * BAND_ROWS).astype(np.uint32)
        self.tables: list[Table] = [table_of(t) for t in (self.common, self.long, self.short)]

    def scan(self, text: NDArray[np.uint8], bounds: NDArray[np.int64]) -> tuple[Any, U64]:
        """SCANNED per row, and band hashes [BANDS, rows]; arguments are those of `join`."""
        out = np.recarray(len(bounds), SCANNED)
        out.view(np.uint8).fill(0)
        bands = np.empty((BANDS, len(bounds)), np.uint64)
        run: Any = scan
        run(text, bounds, self.mul, self.add, *self.tables, out, bands)
        return out, bands


def join(texts: Sequence[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """Prompt and answer of each row in turn as one text, with SEPARATOR between and after them.

    And [rows, 3]: where each prompt begins, where it ends, where its answer ends.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(sizes + 1) - 1
    bounds = np.zeros((len(texts) // 2, 3), np.int64)
    bounds[1:, 0] = ends[1:-1:2] + 1
    bounds[:, 1], bounds[:, 2] = ends[0::2], ends[1::2]
    return SEPARATOR.encode().join([*texts, b""]), bounds
