"""Lines that differ in two or three texts only, read by compiled loops.

A lane is what such lines share: the bytes before, between and after their texts. A line that has
exactly these bytes, and JSON strings of valid UTF-8 between them, needs no other reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.kernels import Bytes, compiled, lent
from trainyard.data.lay import mark, put
from trainyard.data.units import next_full

ASKED, MORE, TOLD = range(3)
HOLES = 3
NOWHERE = -1
SEPARATOR_BYTE = 2
"""`patterns.SEPARATOR`, after each text."""


@dataclass(frozen=True)
class Lane:
    around: tuple[bytes, ...]
    """One more than there are texts; each ends or begins with the quote of a text."""
    parts: tuple[int, ...]
    """What each text is: ASKED, MORE of it (after a line end, when neither is empty), or TOLD."""


@compiled
def _continues(text: Any, i: int, low: int, high: int) -> bool:
    return i < len(text) and low <= text[i] <= high


@compiled
def _wide(text: Any, i: int) -> int:
    """Bytes of the UTF-8 sequence at `i` (Unicode 15, table 3-7); 0 when it is none."""
    b = int(text[i])
    low, high, more = 0x80, 0xBF, 0
    if 0xC2 <= b <= 0xDF:
        more = 1
    elif 0xE0 <= b <= 0xEF:
        more = 2
        low, high = (0xA0 if b == 0xE0 else low), (0x9F if b == 0xED else high)
    elif 0xF0 <= b <= 0xF4:
        more = 3
        low, high = (0x90 if b == 0xF0 else low), (0x8F if b == 0xF4 else high)
    if more == 0 or not _continues(text, i + 1, low, high):
        return 0
    for k in range(2, more + 1):
        if not _continues(text, i + k, 0x80, 0xBF):
            return 0
    return more + 1


@compiled
def _hex(text: Any, i: int) -> int:
    """The number that four hexadecimal digits at `i` write; -1 when they are none."""
    if i + 4 > len(text):
        return -1
    number = 0
    for k in range(i, i + 4):
        c = int(text[k])
        low = c | 32
        if 48 <= c <= 57:
            number = number * 16 + c - 48
        elif 97 <= low <= 102:
            number = number * 16 + low - 87
        else:
            return -1
    return number


@compiled
def _escape(text: Any, i: int) -> tuple[int, int]:
    """Code point that the backslash at `i` begins, and bytes it takes; none for a bad escape."""
    if i + 1 >= len(text):
        return 0, 0
    c = int(text[i + 1])
    if c == 117:
        found = _hex(text, i + 2)
        if found < 0 or 0xDC00 <= found < 0xE000:
            return 0, 0
        if found < 0xD800 or found >= 0xE000:
            return found, 6
        if i + 7 >= len(text) or text[i + 6] != 92 or text[i + 7] != 117:
            return 0, 0
        second = _hex(text, i + 8)
        if second < 0xDC00 or second >= 0xE000:
            return 0, 0
        return 0x10000 + (found - 0xD800) * 1024 + second - 0xDC00, 12
    if c == 34 or c == 92 or c == 47:
        return c, 2
    if c == 110:
        return 10, 2
    if c == 116:
        return 9, 2
    if c == 114:
        return 13, 2
    if c == 98:
        return 8, 2
    if c == 102:
        return 12, 2
    return 0, 0


@compiled
def _size(c: int) -> int:
    return 1 if c < 0x80 else 2 if c < 0x800 else 3 if c < 0x10000 else 4


@compiled
def _text_size(text: Any) -> int:
    """Bytes of the text that a JSON string without its quotes holds; -1 when it is none."""
    i = size = 0
    while i < len(text):
        b = text[i]
        if b == 92:
            c, width = _escape(text, i)
            size += _size(c)
        elif b < 128:
            width = 1
            size += 1
        else:
            width = _wide(text, i)
            size += width
        if width == 0:
            return -1
        i += width
    return size


@compiled
def _put_text(text: Any, size: int, words: Any, out: Any, at: int) -> int:
    if size == len(text):
        return put(text, out, at)
    mark(text, words.view(np.uint8))
    i = 0
    while True:
        end = next_full(words, i)
        at = put(text[i:end], out, at)
        if end >= len(text):
            return at
        c, width = _escape(text, end)
        i = end + width
        if c < 0x80:
            out[at] = c
        elif c < 0x800:
            out[at], out[at + 1] = 0xC0 | c >> 6, 0x80 | c & 63
        elif c < 0x10000:
            out[at], out[at + 1] = 0xE0 | c >> 12, 0x80 | c >> 6 & 63
            out[at + 2] = 0x80 | c & 63
        else:
            out[at], out[at + 1] = 0xF0 | c >> 18, 0x80 | c >> 12 & 63
            out[at + 2], out[at + 3] = 0x80 | c >> 6 & 63, 0x80 | c & 63
        at += _size(c)


@compiled
def _begins(line: Any, at: int, piece: Any) -> bool:
    if at + len(piece) > len(line):
        return False
    for i in range(len(piece)):  # noqa: SIM110  (numba has no generators)
        if line[at + i] != piece[i]:
            return False
    return True


@compiled
def _fits(line: Any, words: Any, ascii: bool, around: Any, ends: Any, out: Any) -> bool:
    """Whether the lane's pieces of `around`, which end at `ends`, are those of the line.

    Writes start, end and size of the text of each hole.
    """
    at = before = 0
    for hole in range(len(ends)):
        if not _begins(line, at, around[before : ends[hole]]):
            return False
        at += ends[hole] - before
        before = ends[hole]
        if hole + 1 == len(ends):
            return bool(at == len(line))
        start, size = at, 0
        while True:
            end = next_full(words, at)
            size += end - at
            at = end
            if at >= len(line) or line[at] != 92:
                break
            c, width = _escape(line, at)
            if width == 0:
                return False
            size += _size(c)
            at += width
        if at >= len(line) or line[at] != 34:
            return False
        if not ascii:
            size = _text_size(line[start:at])
            if size < 0:
                return False
        out[hole, 0], out[hole, 1], out[hole, 2] = start, at, size
    return False


@compiled
def _match(
    content: Any, starts: Any, lengths: Any, longest: int, lanes: Any, first: int, which: Any,
    spans: Any,
) -> None:  # fmt: skip
    content, spans = lent(content), lent(spans)
    around, ends = lent(lanes)
    room = 0
    for r in range(first, len(starts)):
        room = max(room, lengths[r] if lengths[r] <= longest else 0)
    words = np.zeros(room // 8 + 2, np.uint64)
    marks = words.view(np.uint8)
    last = 0
    for r in range(first, len(starts)):
        if which[r] >= 0 or lengths[r] > longest:
            continue
        line = content[starts[r] : starts[r] + lengths[r]]
        ascii = mark(line, marks) < 128
        for turn in range(len(ends)):
            lane = (last + turn) % len(ends)
            count = 0
            while count < HOLES + 1 and ends[lane, count] >= 0:
                count += 1
            if _fits(line, words, ascii, around[lane], ends[lane, :count], spans[r]):
                which[r] = last = lane
                break


@compiled
def _lay(
    content: Any, starts: Any, rows: Any, which: Any, parts: Any, spans: Any, other: Any,
    other_ends: Any, words: Any, out: Any, bounds: Any,
) -> int:  # fmt: skip
    content, spans, other, out = lent(content), lent(spans), lent(other), lent(out)
    words = lent(words)
    at = begin = k = 0
    for i in range(len(rows)):
        r = rows[i]
        bounds[i, 0] = at
        if which[r] < 0:
            for side in range(2):
                at = put(other[begin : other_ends[k]], out, at)
                begin = other_ends[k]
                k += 1
                bounds[i, 1 + side] = at
                out[at] = SEPARATOR_BYTE
                at += 1
            continue
        line = content[starts[r] :]
        for part in range(HOLES):
            hole = parts[which[r], part]
            if hole >= 0:
                start, end, size = spans[r, hole]
                if part == MORE and size and at > bounds[i, 0]:
                    out[at] = 10
                    at += 1
                at = _put_text(line[start:end], size, words, out, at)
            if part != ASKED:
                bounds[i, part] = at
                out[at] = SEPARATOR_BYTE
                at += 1
    return at


class Lanes:
    """The lanes of one table that are known, for its records."""

    def __init__(self) -> None:
        self.known: list[Lane] = []

    def add(self, lane: Lane) -> None:
        self.known.append(lane)
        longest = max(sum(map(len, k.around)) for k in self.known)
        self.around = np.zeros((len(self.known), longest), np.uint8)
        self.ends = np.full((len(self.known), HOLES + 1), NOWHERE, np.int64)
        self.parts = np.full((len(self.known), HOLES), NOWHERE, np.int64)
        for i, known in enumerate(self.known):
            joined = b"".join(known.around)
            self.around[i, : len(joined)] = np.frombuffer(joined, np.uint8)
            self.ends[i, : len(known.around)] = np.cumsum([*map(len, known.around)])
            for hole, part in enumerate(known.parts):
                self.parts[i, part] = hole

    def match(
        self, content: Bytes, starts: Any, lengths: Any, longest: int, first: int, which: Any,
        spans: Any,
    ) -> None:  # fmt: skip
        """From record `first` on, set `which` to the lane of each record that has one.

        And `spans`, [records, HOLES, 3], to start, end and text size of each hole.
        """
        if self.known:
            lanes = self.around, self.ends
            _match(content, starts, lengths, longest, lanes, first, which, spans)

    def lay(
        self, content: Bytes, starts: Any, rows: NDArray[np.int64], which: Any, spans: Any,
        others: Sequence[bytes],
    ) -> tuple[bytes, NDArray[np.int64]]:  # fmt: skip
        """What `scan.join` makes of asked and told of `rows`; `others` are those without lane."""
        ends = np.cumsum(np.fromiter(map(len, others), np.int64, len(others)))
        laned = which[rows] >= 0
        size = int(spans[rows[laned], :, 2].sum()) + sum(map(len, others)) + 3 * len(rows)
        out, bounds = np.empty(size, np.uint8), np.empty((len(rows), 3), np.int64)
        parts = self.parts if self.known else np.empty((0, HOLES), np.int64)
        other = np.frombuffer(b"".join(others), np.uint8)
        words = np.empty(int(spans[:, :, 1].max(initial=0)) // 8 + 2, np.uint64)
        end = _lay(content, starts, rows, which, parts, spans, other, ends, words, out, bounds)
        return out[:end].tobytes(), bounds
