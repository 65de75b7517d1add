"""Canonical lines of a batch, laid out by compiled loops: bodies, then lines with their ids."""

from typing import Any

import numpy as np
import orjson
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trainyard.data.kernels import Bytes, compiled, lent
from trainyard.data.units import next_full


def _bytes(text: bytes) -> Bytes:
    return np.frombuffer(text, np.uint8)


HEAD = _bytes(b'{"kind":"sft","messages":[{"role":"user","content":"')
MIDDLE = _bytes(b'"},{"role":"assistant","content":"')
TAIL = _bytes(b'"}]}')
HEX = _bytes(b"0123456789abcdef")
# What JSON writes after a backslash; 0 for other control characters, which it writes as \u00xx.
SHORT = np.zeros(128, np.uint8)
SHORT[[8, 9, 10, 12, 13, 34, 92]] = _bytes(b'btnfr"\\')


@intrinsic  # type: ignore[untyped-decorator]
def _copy(_context: Any, piece: Any, out: Any, _at: Any) -> Any:
    """memcpy: a loop over a piece of any size takes four times as long."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, target = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:2], values[:2], strict=True)
        )
        to = builder.gep(target.data, [values[2]])
        cgutils.raw_memcpy(builder, to, source.data, source.nitems, 1)
        return context.get_dummy_value()

    return types.void(piece, out, types.intp), generate


@compiled
def put(piece: Any, out: Any, at: int) -> int:
    _copy(piece, out, at)
    return at + len(piece)


@compiled
def mark(text: Any, marks: Any) -> int:
    """Mark quotes, backslashes and control characters; the largest byte.

    `marks` has room for two more than there are bytes.
    """
    highest = np.uint8(0)
    for i in range(len(text)):  # bytes, selects and max only: this is what gets vectorised
        c = text[i]
        m = np.uint8(1) if c < np.uint8(32) else np.uint8(0)
        m = np.uint8(1) if c == np.uint8(34) else m
        marks[i] = np.uint8(1) if c == np.uint8(92) else m
        highest = max(highest, c)
    marks[len(text)] = marks[len(text) + 1] = 1  # where a search ends, after a backslash too
    return int(highest)


@compiled
def _put_escaped(piece: Any, words: Any, out: Any, at: int) -> int:
    """JSON string content as orjson writes it: UTF-8, the short escapes, lower-case hex."""
    mark(piece, words.view(np.uint8))
    i = 0
    while True:
        end = next_full(words, i)
        at = put(piece[i:end], out, at)
        if end >= len(piece):
            return at
        c = piece[end]
        i = end + 1
        out[at] = 92
        if SHORT[c]:
            out[at + 1] = SHORT[c]
            at += 2
            continue
        out[at + 1], out[at + 2], out[at + 3] = 117, 48, 48
        out[at + 4], out[at + 5] = HEX[c >> 4], HEX[c & 15]
        at += 6


@compiled
def _bodies(text: Any, bounds: Any, made: Any, made_ends: Any, out: Any, ends: Any) -> None:
    text, made, out = lent(text), lent(made), lent(out)
    at = begin = longest = 0
    for r in range(len(bounds)):
        longest = max(longest, bounds[r, 2] - bounds[r, 0])
    words = np.empty(longest // 8 + 2, np.uint64)
    for r in range(len(bounds)):
        if made_ends[r] > begin:
            at = put(made[begin : made_ends[r]], out, at)
        else:
            at = put(HEAD, out, at)
            at = _put_escaped(text[bounds[r, 0] : bounds[r, 1]], words, out, at)
            at = put(MIDDLE, out, at)
            at = _put_escaped(text[bounds[r, 1] + 1 : bounds[r, 2]], words, out, at)
            at = put(TAIL, out, at)
        begin = made_ends[r]
        ends[r] = at


@compiled
def _number(n: int, out: Any, at: int) -> int:
    size, rest = 1, n
    while rest >= 10:
        rest //= 10
        size += 1
    for i in range(size):
        out[at + size - 1 - i] = 48 + n % 10
        n //= 10
    return at + size


@compiled
def _lines(
    body: Any, body_ends: Any, ids: Any, numbers: Any, source: Any, meta: Any, meta_ends: Any,
    ready: Any, ready_ends: Any, words: Any, out: Any, ends: Any,
) -> None:  # fmt: skip
    body, meta, ready, out, source = lent(body), lent(meta), lent(ready), lent(out), lent(source)
    first, after, last, nothing = words
    at = begin = meta_begin = ready_begin = 0
    for r in range(len(numbers)):
        if ready_ends[r] > ready_begin:
            at = put(ready[ready_begin : ready_ends[r]], out, at)
        else:
            at = put(first, out, at)
            for i in range(16):
                out[at] = HEX[ids[r, i] >> 4]
                out[at + 1] = HEX[ids[r, i] & 15]
                at += 2
            out[at], out[at + 1] = 34, 44
            at = put(body[begin + 1 : body_ends[r] - 1], out, at + 2)
            at = put(source, out, at)
            at = _number(numbers[r], out, at)
            at = put(after, out, at)
            found = meta[meta_begin : meta_ends[r]]
            at = put(found if len(found) else nothing, out, at)
            at = put(last, out, at)
        begin, meta_begin, ready_begin = body_ends[r], meta_ends[r], ready_ends[r]
        ends[r] = at


def _blob(pieces: dict[int, bytes], rows: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Pieces in the order of their rows, and where each row's piece ends; most have none."""
    sizes = np.zeros(rows, np.int64)
    for row, piece in pieces.items():
        sizes[row] = len(piece)
    joined = b"".join(pieces[row] for row in sorted(pieces))
    return _bytes(joined), np.cumsum(sizes)


def lay_bodies(
    text: Bytes, bounds: NDArray[np.int64], made: dict[int, bytes]
) -> tuple[Bytes, NDArray[np.int64]]:
    """JSON of each row's body, as `orjson.dumps` of it, and where each ends.

    A row is one question and one answer in `text`, at its `bounds`, unless `made` holds its JSON.
    """
    blob, made_ends = _blob(made, len(bounds))
    fixed = len(HEAD) + len(MIDDLE) + len(TAIL)
    out = np.empty(6 * len(text) + len(blob) + fixed * len(bounds), np.uint8)
    ends = np.empty(len(bounds), np.int64)
    _bodies(text, bounds, blob, made_ends, out, ends)
    return out, ends


def lay_lines(
    body: Bytes, ends: NDArray[np.int64], ids: NDArray[np.uint8], numbers: NDArray[np.int64],
    file: str, metas: dict[int, bytes], ready: dict[int, bytes],
) -> tuple[Bytes, NDArray[np.int64]]:  # fmt: skip
    """Canonical lines and where each ends: id, body, source, meta; or `ready` instead."""
    meta, meta_ends = _blob(metas, len(ends))
    other, other_ends = _blob(ready, len(ends))
    source = b',"source":{"file":%b,"line":' % orjson.dumps(file)
    words = tuple(map(_bytes, (b'{"id":"', b'},"meta":', b"}\n", b"{}")))
    size = int(ends[-1]) + len(meta) + len(other) + (len(source) + 80) * len(ends)
    out = np.empty(size, np.uint8)
    line_ends = np.empty(len(ends), np.int64)
    _lines(
        body, ends, ids, numbers, _bytes(source), meta, meta_ends, other, other_ends, words, out,
        line_ends,
    )  # fmt: skip
    return out[: line_ends[-1]], line_ends


@compiled
def _pick(content: Any, starts: Any, wanted: Any, out: Any) -> int:
    content, out = lent(content), lent(out)
    at = row = 0
    while row < len(starts):
        first = row
        while row < len(starts) and wanted[row] == wanted[first]:
            row += 1
        if wanted[first]:
            end = starts[row] if row < len(starts) else len(content)
            at = put(content[starts[first] : end], out, at)
    return at


def pick(content: Bytes, starts: NDArray[np.int64], wanted: NDArray[np.bool_]) -> Bytes:
    """The wanted ones of rows that begin at `starts`, one after the other."""
    out = np.empty(len(content), np.uint8)
    return out[: _pick(content, starts, wanted, out)]
