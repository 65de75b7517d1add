"""Duplicates and clusters over all chunks, from their facts.

One band of hashes is held at a time, the others stay on disk. Candidates that share a band are
verified by Jaccard similarity of their shingles.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trainyard.data.grams import table_of
from trainyard.data.kernels import compiled
from trainyard.data.lanes import ASKED, HOLES, TOLD, Lane, Lanes
from trainyard.data.lay import HEAD, MIDDLE, TAIL
from trainyard.data.leakage import asked_and_told
from trainyard.data.scan import BANDS
from trainyard.data.shingles import MOST_ROWS, similarities
from trainyard.data.units import U64

TOGETHER_AT = 0.7
"""Rows at least this similar stay on one side of the split, even when both are kept."""
BEFORE_BODY, AFTER_BODY = len('{"id":"",') + 32, b',"source":{'
CANONICAL = Lane((HEAD.tobytes()[1:], MIDDLE.tobytes(), TAIL.tobytes()[:-1]), (ASKED, TOLD))
"""Of one question and one answer: what `lay_lines` writes between the id and the source."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Canonical rows by their number over all chunks."""

    files: Sequence[Path]
    firsts: Sequence[int]
    """Number of the first row of each chunk."""
    starts: Rows
    sizes: NDArray[np.int32]
    opened: dict[int, int] = field(default_factory=dict)

    def read(self, row: int) -> bytes:
        """The line of a row, or the first of several."""
        chunk = bisect_right(self.firsts, row) - 1
        if chunk not in self.opened:
            self.opened[chunk] = os.open(self.files[chunk], os.O_RDONLY)
        content = os.pread(self.opened[chunk], int(self.sizes[row]), int(self.starts[row]))
        return content.partition(b"\n")[0]

    def close(self) -> None:
        for descriptor in self.opened.values():
            os.close(descriptor)
        self.opened.clear()


@compiled
def _again(keys: Any, shift: Any, seen: Any, twice: Any, found: Any) -> int:
    one, low = np.uint64(1), np.uint64(63)
    for i in range(len(keys)):
        at = keys[i] >> shift
        bit = one << (at & low)
        at >>= np.uint64(6)
        twice[at] |= seen[at] & bit
        seen[at] |= bit
    count = 0
    for i in range(len(keys)):  # without a branch
        at = keys[i] >> shift
        found[count] = i
        count += int(twice[at >> np.uint64(6)] >> (at & low) & one)
    return count


def occurring_again(keys: U64) -> Rows:
    """Positions of keys that occur more than once, and of a few others, ascending.

    Two bitmaps over the upper bits take a fraction of the time that sorting takes.
    """
    width = min(max(16 * len(keys), 1 << 12).bit_length(), 28)
    seen, twice = np.zeros((2, 1 << width - 6), np.uint64)
    found = np.empty(len(keys) + 1, np.int64)
    return found[: _again(keys, np.uint64(64 - width), seen, twice, found)].copy()


def repeats(ids: NDArray[np.uint64]) -> Rows:
    """Per row, the first row with the same 128-bit id; -1 where that is the row itself."""
    made = np.full(len(ids), -1, np.int64)
    rows = occurring_again(np.ascontiguousarray(ids[:, 0]))
    if len(rows):
        order = rows[np.argsort(ids[rows, 0], kind="stable")]
        ranked = ids[order]
        new = np.r_[True, (ranked[1:] != ranked[:-1]).any(axis=1)]
        first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
        made[order] = np.where(new, -1, first)
    return made


def candidates(bands: Sequence[Any], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[n, 2] pairs of rows, earlier first, that share a band, each with the first and the last.

    `bands` holds one [BANDS, rows] array per chunk, `alive` says which rows to compare.
    """
    pairs: list[Any] = []
    for b in range(BANDS):
        hashes = np.concatenate([np.empty(0, np.uint64), *(part[b] for part in bands)])
        rows = occurring_again(hashes)
        rows = rows[alive[rows]]
        rows = rows[np.argsort(hashes[rows], kind="stable")]
        ranked = hashes[rows]
        same = np.flatnonzero(ranked[1:] == ranked[:-1]) + 1
        if not len(same):
            continue
        begins = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        leader = begins[np.searchsorted(begins, same, "right") - 1]
        pairs += [
            np.stack([rows[leader], rows[same]], 1),
            np.stack([rows[same - 1], rows[same]], 1),
        ]
    if not pairs:
        return np.empty((0, 2), np.int64)
    found = np.sort(np.concatenate(pairs), axis=1)
    ranked = found[np.lexsort((found[:, 1], found[:, 0]))]
    new = np.r_[True, (ranked[1:] != ranked[:-1]).any(axis=1)]
    return np.asarray(ranked[new], np.int64)


def similarity(
    pairs: NDArray[np.int64], texts: Texts, common: U64, at_once: int = MOST_ROWS // 2
) -> NDArray[np.float64]:
    """[pairs, 2]: Jaccard similarity of the rows of each pair, and of their answers."""
    made, table = np.empty((len(pairs), 2)), table_of(common)
    for first in range(0, len(pairs), at_once):
        rows, places = np.unique(pairs[first : first + at_once], return_inverse=True)
        joined, bounds = canonical_texts([texts.read(row) for row in rows.tolist()])
        made[first : first + at_once] = similarities(joined, bounds, places.reshape(-1, 2), table)
    return made


def canonical_texts(lines: Sequence[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """Asked and told of canonical lines, as `join` puts them."""
    lanes = Lanes()
    lanes.add(CANONICAL)
    bodies = [line[BEFORE_BODY : line.rfind(AFTER_BODY)] for line in lines]
    lengths = np.fromiter(map(len, bodies), np.int64, len(bodies))
    starts, content = np.cumsum(lengths) - lengths, np.frombuffer(b"".join(bodies), np.uint8)
    which, spans = np.full(len(lines), -1, np.int64), np.zeros((len(lines), HOLES, 3), np.int64)
    lanes.match(content, starts, lengths, len(content), 0, which, spans)
    read = [asked_and_told(orjson.loads(lines[i])) for i in np.flatnonzero(which < 0).tolist()]
    others = [text.encode() for pair in read for text in pair]
    return lanes.lay(content, starts, np.arange(len(lines)), which, spans, others)


class Clusters:
    """Disjoint sets whose representative is the smallest member."""

    def __init__(self, n: int) -> None:
        self.parent = np.arange(n, dtype=np.int64)

    def find(self, row: int) -> int:
        parent = self.parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def join(self, one: int, other: int) -> None:
        a, b = self.find(one), self.find(other)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def join_equal(self, keys: U64, rows: Rows) -> None:
        """Join rows with equal keys; a key of 0 joins nothing."""
        again = occurring_again(keys)
        again = again[np.argsort(keys[again], kind="stable")]
        ranked, members = keys[again], rows[again]
        for i in np.flatnonzero((ranked[1:] == ranked[:-1]) & (ranked[1:] != 0)).tolist():
            self.join(int(members[i]), int(members[i + 1]))

    def roots(self) -> Rows:
        parent = self.parent
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                return parent
            parent = above


@dataclass(frozen=True)
class Similar:
    near: Rows
    """Rows that repeat the first of their cluster."""
    partners: dict[int, tuple[int, float]]
    """Such a row -> the row it was found to repeat, and how similar they are."""
    alike: list[tuple[int, int]]
    """Pairs similar enough to stay on one side of the split."""
    compared: int


def near_duplicates(pairs: NDArray[np.int64], shares: NDArray[np.float64], at: float) -> Similar:
    """Verified near-duplicates among candidate pairs, whose similarities are `shares`.

    The answers must be as similar as the whole: a long shared prompt does not make a duplicate.
    """
    clusters: dict[int, int] = {}
    partners: dict[int, tuple[int, float]] = {}
    alike: list[tuple[int, int]] = []

    def root(row: int) -> int:
        while clusters.get(row, row) != row:
            row = clusters[row]
        return row

    for (one, other), (whole, answer) in zip(pairs.tolist(), shares.tolist(), strict=True):
        if whole < min(TOGETHER_AT, at):
            continue
        alike.append((one, other))
        if whole < at or answer < at:
            continue
        a, b = root(one), root(other)
        if a != b:
            clusters[max(a, b)] = min(a, b)
        partners.setdefault(other, (one, whole))
    near = np.array(sorted(r for r in {*clusters, *partners} if root(r) != r), np.int64)
    return Similar(
        near, {r: partners[r] for r in near.tolist() if r in partners}, alike, len(pairs)
    )
