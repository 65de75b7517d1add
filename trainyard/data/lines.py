"""Records of a table, by position: raw bytes with their line and byte offset."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.containers import Table
from trainyard.errors import InputError

BLOCK, ROWS = 1 << 22, 4096
"""Bytes read at once, and records of an index."""
PIECE = 1 << 18
"""Bytes that stay in the cache."""
LINE_END = ord("\n")


@dataclass(frozen=True)
class Chunk:
    """A range of one table: bytes [start, end) of lines, or records [start, end) of its index."""

    table: Table
    start: int
    end: int
    first_line: int
    lines: int


def cut(table: Table, size: int) -> list[Chunk]:
    """Chunks of about `size` bytes that end where records end."""
    if table.index is not None:
        records = np.load(table.index, mmap_mode="r")
        total = int(records[-1, 0] + records[-1, 1] - records[0, 0])
        per_chunk = max(1, len(records) * size // max(total, 1))
        starts = range(0, len(records), per_chunk)
        ends = [*starts[1:], len(records)]
        return [Chunk(table, a, b, 0, b - a) for a, b in zip(starts, ends, strict=True)]
    chunks: list[Chunk] = []
    start, first = (3 if table.has_bom else 0), 1
    piece = np.empty(min(size, PIECE), np.uint8)
    with table.path.open("rb") as opened:
        opened.seek(start)
        while True:
            read = lines = 0
            while read < size and (got := opened.readinto(piece.data[: size - read])):
                lines += int(np.count_nonzero(piece[:got] == LINE_END))
                read, last = read + got, piece[got - 1]
            if not read:
                return chunks
            if last != LINE_END:
                lines, read = lines + 1, read + len(opened.readline())
            chunks.append(Chunk(table, start, start + read, first, lines))
            start, first = start + read, first + lines


def first(chunks: list[Chunk], rows: int | None) -> tuple[list[Chunk], int | None]:
    """Chunks of the first `rows` records, and how many more may come; None is no limit."""
    if rows is None:
        return chunks, None
    taken: list[Chunk] = []
    for chunk in chunks:
        if chunk.lines > rows > 0:
            *_, (_, offset, raw) = islice(records(chunk), rows)
            end = chunk.start + rows if chunk.table.index is not None else offset + len(raw) + 1
            chunk = replace(chunk, end=end, lines=rows)
        if rows:
            taken.append(chunk)
            rows -= chunk.lines
    return taken, rows


def records(chunk: Chunk) -> Iterator[tuple[int, int, bytes]]:
    """Line, byte offset and raw bytes of every record, without its line end."""
    for some in batches(chunk):
        for i in range(len(some)):
            yield int(some.lines[i]), int(some.offsets[i]), some.raw(i)


@dataclass(frozen=True)
class Records:
    """Consecutive records: where each is in `content` and in the file, and its line."""

    content: bytes | memoryview
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """In bytes, without the line end."""
    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def raw(self, i: int) -> bytes:
        return bytes(self.content[self.starts[i] : self.starts[i] + self.lengths[i]])


def batches(chunk: Chunk, size: int = BLOCK) -> Iterator[Records]:
    """All records of the chunk, about `size` bytes at a time, each only until the next is read.

    Raises InputError for a file that changed.
    """
    if chunk.table.index is not None:
        yield from _indexed(chunk, size)
        return
    line = chunk.first_line
    with chunk.table.path.open("rb", buffering=0) as opened:
        for offset, content in _blocks(chunk, opened.fileno(), size):
            ends = np.flatnonzero(np.frombuffer(content, np.uint8) == LINE_END)
            if content[-1] != LINE_END:
                ends = np.append(ends, len(content))
            starts = np.zeros(len(ends), np.int64)
            starts[1:] = ends[:-1] + 1
            lines = np.arange(line, line + len(ends))
            yield Records(content, starts, ends - starts, offset + starts, lines)
            line += len(ends)


def _blocks(chunk: Chunk, file: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """Offset and bytes of whole lines, one after the other; each only until the next is read."""
    buffer, kept, offset = bytearray(min(size, chunk.end - chunk.start)), 0, chunk.start
    while (at := offset + kept) < chunk.end:
        if kept == len(buffer):
            buffer = buffer + bytes(kept)  # a line longer than a block; the old one is lent
        view = memoryview(buffer)
        got = os.preadv(file, [view[kept : kept + chunk.end - at]], at)
        if not got:
            raise InputError(f"{chunk.table.name} changed while it was read: start again")
        kept += got
        whole = kept if at + got == chunk.end else buffer.rfind(b"\n", 0, kept) + 1
        if whole:
            yield offset, view[:whole]
            view[: kept - whole] = view[whole:kept]
            offset, kept = offset + whole, kept - whole
        del view


def _indexed(chunk: Chunk, size: int) -> Iterator[Records]:
    index: Any = np.load(chunk.table.index, mmap_mode="r")  # type: ignore[arg-type]
    begin = chunk.start
    with chunk.table.path.open("rb") as opened:
        while begin < chunk.end:
            some = np.array(index[begin : min(begin + ROWS, chunk.end)])
            wanted = int(np.searchsorted(some[:, 0], some[0, 0] + size))
            starts, lengths, lines = some[: max(wanted, 1)].T.copy()
            opened.seek(int(starts[0]))
            content = opened.read(int(starts[-1] + lengths[-1] - starts[0]))
            yield Records(content, starts - starts[0], lengths, starts, lines)
            begin += len(starts)
