"""n-grams of units, and sets of hashes to look them up in; compiled."""

from typing import Any

import numpy as np

from trainyard.data.kernels import compiled
from trainyard.data.units import BASE, U64, mix

LONG_GRAM, PROMPT_GRAM = 13, 8
Table = tuple[U64, U64, np.uint64]
"""Sorted hashes, a bitmap over their upper and their lowest bits (Bloom 1970), and the shift that
gives the upper ones."""
_ONE = np.uint64(1)


def table_of(hashes: U64) -> Table:
    """`hashes` are sorted. The bitmap has about 32 bits for each: one in 500 others passes it."""
    width = min(max(32 * len(hashes), 1 << 12).bit_length(), 24)
    shift = np.uint64(64 - width)
    marked = np.zeros(1 << width, np.uint8)
    marked[(hashes >> shift).astype(np.int64)] = 1
    marked[(hashes & np.uint64((1 << width) - 1)).astype(np.int64)] = 1
    return hashes, np.packbits(marked, bitorder="little").view(np.uint64), shift


@compiled
def prefixes(unit: Any, n: int, out: Any) -> None:
    """Polynomial hash of the first i units, for i up to n: any run's hash is a difference."""
    out[0] = 0
    rolling = np.uint64(0)
    for i in range(n):
        rolling = rolling * BASE + unit[i]
        out[i + 1] = rolling


@compiled
def grams(prefix: Any, start: int, end: int, k: int, power: Any, out: Any) -> int:
    """Hashes of the k-grams of units [start, end); of all of them together when fewer than k."""
    if end <= start:
        return 0
    k = min(k, end - start)
    count = end - start - k + 1
    low, high, top = prefix[start : start + count], prefix[start + k : end + 1], power[k]
    for i in range(count):
        out[i] = mix(high[i] - low[i] * top)
    return count


@compiled
def _marked(bits: Any, at: Any) -> Any:
    return bits[at >> np.uint64(6)] >> (at & np.uint64(63)) & _ONE


@compiled
def contained(table: Any, gram: Any, count: int) -> bool:
    """Whether a set holds one of the grams; the first of `gram` are overwritten."""
    _, bits, shift = table
    maybe = 0
    for i in range(count):  # without a branch, so that many are looked up at once
        x = gram[i]
        gram[maybe] = x
        maybe += int(_marked(bits, x >> shift))
    for i in range(maybe):  # noqa: SIM110  (numba has no generators)
        if contains(table, gram[i]):
            return True
    return False


@compiled
def contains(table: Any, x: Any) -> bool:
    """Whether a set holds `x`: its sorted hashes, a bitmap over their upper bits, the shift."""
    ranked, bits, shift = table
    lowest = np.uint64(64 * len(bits)) - _ONE
    if not _marked(bits, x >> shift) or not _marked(bits, x & lowest):
        return False
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) >> 1
        if ranked[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low < len(ranked) and ranked[low] == x


@compiled
def without(common: Any, gram: Any, count: int) -> int:
    """Drop grams that are common in this data; with none left, one for the whole stays."""
    if not len(common[0]):
        return count
    _, bits, shift = common
    n = 0
    for i in range(count):
        x = gram[i]
        # the bitmap is asked here: a call of `contains` counts references to each array
        if not (_marked(bits, x >> shift) and contains(common, x)):
            gram[n] = x
            n += 1
    if n == 0 and count:
        whole = np.uint64(0)
        for i in range(count):
            whole = mix(whole ^ gram[i])
        gram[0] = whole
        n = 1
    return n
