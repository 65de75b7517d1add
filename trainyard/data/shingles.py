"""Sets of shingles (3 words or 5 characters) by which rows are compared exactly; compiled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.grams import Table, grams, prefixes, without
from trainyard.data.kernels import compiled, lent
from trainyard.data.scan import join
from trainyard.data.units import U64, scratch, units


@compiled
def _row(text: Any, bound: Any, memory: Any, unit: Any, prefix: Any) -> tuple[int, int, int, int]:
    """Units of a row's prompt and of all of it; sizes of its shingles, and of its answer's."""
    seen = np.zeros(10, np.int64)
    asked, alone, _, _ = units(text, bound[0], bound[1], memory, unit, seen)
    told, alone2, _, _ = units(text, bound[1] + 1, bound[2], memory, unit[asked:], seen)
    prefixes(unit, asked + told, prefix)
    k = 5 if 2 * (alone + alone2) > asked + told else 3
    return asked, asked + told, k, 5 if 2 * alone2 > told else 3


@compiled
def _room(bounds: Any) -> Any:
    """Memory for the longest row."""
    longest = 0
    for r in range(len(bounds)):
        longest = max(longest, bounds[r, 2] - bounds[r, 0])
    unit = np.empty(longest + 3, np.uint64)
    return scratch(longest), unit, np.empty(longest + 4, np.uint64), np.empty_like(unit)


@compiled
def _tag(gram: Any, count: int, row: int, out: Any) -> int:
    """Hashes of 52 bits below their row, so that one sort of all rows sorts each."""
    for i in range(count):
        out[i] = np.uint64(row) << np.uint64(52) | gram[i] >> np.uint64(12)
    return count


@compiled
def _tagged(text: Any, bounds: Any, common: Any, whole: Any, answer: Any) -> Any:
    """Shingles of rows and of their answers; [rows + 1, 2]: where those of each row begin."""
    text, common, whole, answer = lent(text), lent(common), lent(whole), lent(answer)
    memory, unit, prefix, gram = _room(bounds)
    places = np.zeros((len(bounds) + 1, 2), np.int64)
    for r in range(len(bounds)):
        asked, total, k, answer_k = _row(text, bounds[r], memory, unit, prefix)
        at, answer_at = places[r]
        n = without(common, gram, grams(prefix, 0, total, k, memory[3], gram))
        places[r + 1, 0] = at + _tag(gram, n, r, whole[at:])
        n = grams(prefix, asked, total, answer_k, memory[3], gram)
        places[r + 1, 1] = answer_at + _tag(gram, n, r, answer[answer_at:])
    return places


@compiled
def _jaccard(one: Any, other: Any, mask: Any) -> float:
    """Similarity of two sorted lists as sets, their tags left out; of two empty ones, 1."""
    i = j = shared = together = 0
    while i < len(one) or j < len(other):
        x = one[i] & mask if i < len(one) else mask
        y = other[j] & mask if j < len(other) else mask
        shared += x == y
        together += 1
        low = min(x, y)
        while i < len(one) and one[i] & mask == low:
            i += 1
        while j < len(other) and other[j] & mask == low:
            j += 1
    return shared / together if together else 1.0


@compiled
def _similarities(whole: Any, answer: Any, places: Any, pairs: Any, mask: Any) -> Any:
    made = np.empty((len(pairs), 2))
    for p in range(len(pairs)):
        a, b = pairs[p]
        for side in range(2):
            found = answer if side else whole
            one = found[places[a, side] : places[a + 1, side]]
            made[p, side] = _jaccard(one, found[places[b, side] : places[b + 1, side]], mask)
    return made


@compiled
def _distinct(text: Any, bounds: Any, k: int, prompt: bool, out: Any) -> int:
    memory, unit, prefix, gram = _room(bounds)
    at = 0
    for r in range(len(bounds)):
        asked, total, shingle, _ = _row(text, bounds[r], memory, unit, prefix)
        end = asked if prompt else total
        n = grams(prefix, 0, end, k if k else shingle, memory[3], gram)
        ranked = np.sort(gram[:n])
        for i in range(n):
            if i == 0 or ranked[i] != ranked[i - 1]:
                out[at] = ranked[i]
                at += 1
    return at


MOST_ROWS = 1 << 12
_HASH = np.uint64((1 << 52) - 1)


def similarities(
    joined: bytes, bounds: NDArray[np.int64], pairs: NDArray[np.int64], common: Table
) -> NDArray[np.float64]:
    """[pairs, 2]: Jaccard similarity of two rows, and of their answers alone.

    `joined` and `bounds` are at most MOST_ROWS rows as `join` puts them; grams are hashes of 52
    bits. Common grams are left out of a row unless it has no others.
    """
    whole, answer = (np.empty(2 * len(joined), np.uint64) for _ in range(2))
    places = _tagged(np.frombuffer(joined, np.uint8), bounds, common, whole, answer)
    whole[: places[-1, 0]].sort()
    answer[: places[-1, 1]].sort()
    made: NDArray[np.float64] = _similarities(whole, answer, places, pairs, _HASH)
    return made


def distinct_grams(texts: Sequence[bytes], k: int = 0, *, prompt: bool = False) -> U64:
    """k-grams of all rows, each once per row; without `k`, the shingles of the row."""
    joined, bounds = join(texts)
    out = np.empty(2 * len(joined), np.uint64)
    return out[: _distinct(np.frombuffer(joined, np.uint8), bounds, k, prompt, out)]


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
    n, single, _, _ = units(content, 0, len(content), scratch(len(content)), out, np.zeros(10, int))
    return out[:n].copy(), 2 * single > n


def gram_hashes(unit: U64, k: int) -> U64:
    """Hashes of all k-grams; of all units together when they are fewer than k."""
    out, prefix = np.empty(len(unit) + 1, np.uint64), np.empty(len(unit) + 1, np.uint64)
    prefixes(unit, len(unit), prefix)
    return out[: grams(prefix, 0, len(unit), k, scratch(len(unit))[3], out)].copy()
