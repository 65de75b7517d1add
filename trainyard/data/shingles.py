"""Sets of shingles (3 words or 5 characters) by which rows are compared exactly; compiled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.grams import Table, contains, grams, prefixes, table_of
from trainyard.data.kernels import compiled
from trainyard.data.scan import join
from trainyard.data.units import U64, scratch, units


@compiled
def _ranked(gram: Any, count: int, common: Any, out: Any) -> int:
    """Distinct grams in order, without the common ones unless there are no others."""
    ranked = np.sort(gram[:count])
    n = kept = 0
    for i in range(count):
        if i == 0 or ranked[i] != ranked[i - 1]:
            ranked[n] = ranked[i]
            n += 1
    for i in range(n):
        if not len(common[0]) or not contains(common, ranked[i]):
            out[kept] = ranked[i]
            kept += 1
    if not kept:
        out[:n] = ranked[:n]
    return kept if kept else n


@compiled
def sets(text: Any, bounds: Any, common: Any, out: Any) -> Any:
    """Shingles of each row, and of its answer alone: places [rows, 3] of both in `out`."""
    longest = 0
    for r in range(len(bounds)):
        longest = max(longest, bounds[r, 2] - bounds[r, 0])
    memory = scratch(longest)
    power = memory[3]
    unit, prefix = np.empty(longest + 3, np.uint64), np.empty(longest + 4, np.uint64)
    gram, seen = np.empty(longest + 3, np.uint64), np.zeros(10, np.int64)
    nothing = (unit[:0], common[1], common[2])
    places = np.empty((len(bounds), 3), np.int64)
    at = 0
    for r in range(len(bounds)):
        begin, middle, end = bounds[r, 0], bounds[r, 1], bounds[r, 2]
        asked, alone, _, _ = units(text, begin, middle, memory, unit, seen)
        told, alone2, _, _ = units(text, middle + 1, end, memory, unit[asked:], seen)
        total = asked + told
        prefixes(unit, total, prefix)
        places[r, 0] = at
        k = 5 if 2 * (alone + alone2) > total else 3
        at += _ranked(gram, grams(prefix, 0, total, k, power, gram), common, out[at:])
        places[r, 1] = at
        k = 5 if 2 * alone2 > told else 3
        n = grams(prefix, asked, total, k, power, gram)
        at += _ranked(gram, n, nothing, out[at:])
        places[r, 2] = at
    return places


@compiled
def jaccard(one: Any, other: Any) -> float:
    """Similarity of two sorted sets; of two empty ones, 1."""
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


@compiled
def similarities(found: Any, places: Any, pairs: Any) -> Any:
    """[pairs, 2]: similarity of whole rows, and of their answers."""
    made = np.empty((len(pairs), 2))
    for p in range(len(pairs)):
        a, b = places[pairs[p, 0]], places[pairs[p, 1]]
        made[p, 0] = jaccard(found[a[0] : a[1]], found[b[0] : b[1]])
        made[p, 1] = jaccard(found[a[1] : a[2]], found[b[1] : b[2]])
    return made


def shingle_sets(texts: Sequence[bytes], common: Table) -> tuple[U64, NDArray[np.int64]]:
    """Sorted distinct grams, and [rows, 3]: where those of a whole row begin, of its answer, end.

    `texts` are prompt and answer of each row in turn.
    """
    joined, bounds = join(texts)
    out = np.empty(2 * len(joined) + 4 * len(bounds), np.uint64)
    places: NDArray[np.int64] = sets(np.frombuffer(joined, np.uint8), bounds, common, out)
    return out, places


def shingle_set(prompt: bytes, answer: bytes, common: U64) -> U64:
    found, places = shingle_sets([prompt, answer], table_of(common))
    return found[: places[0, 1]]


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
