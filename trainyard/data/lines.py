"""Records of a table, by position: raw bytes with their line and byte offset."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.containers import Table
from trainyard.errors import InputError


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
    with table.path.open("rb") as opened:
        opened.seek(start)
        while block := opened.read(size):
            if block[-1:] != b"\n":
                block_lines = block.count(b"\n")
                rest = opened.readline()
                block_lines += 1
                end = start + len(block) + len(rest)
            else:
                block_lines = block.count(b"\n")
                end = start + len(block)
            chunks.append(Chunk(table, start, end, first, block_lines))
            start, first = end, first + block_lines
    return chunks


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
    for batch in batches(chunk):
        places = zip(batch.lines.tolist(), batch.offsets.tolist(), strict=True)
        for (line, offset), raw in zip(places, batch.raw, strict=True):
            yield line, offset, raw.removesuffix(b"\n")


@dataclass(frozen=True)
class Records:
    """Consecutive records, with byte offsets and lines."""

    raw: list[bytes]
    """As in the file, a line end included where there is one."""
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """In bytes, without the line end."""
    lines: NDArray[np.int64]


def batches(chunk: Chunk, size: int = 4096) -> Iterator[Records]:
    """All records of the chunk, `size` at a time. Raises InputError for a file that changed."""
    if chunk.table.index is not None:
        yield from _indexed(chunk, size)
        return
    offset, line, after = chunk.start, chunk.first_line, chunk.first_line + chunk.lines
    with chunk.table.path.open("rb", buffering=1 << 18) as opened:
        opened.seek(offset)
        while line < after and (raw := list(islice(opened, min(size, after - line)))):
            sizes = np.fromiter(map(len, raw), np.int64, len(raw))
            ends = offset + np.cumsum(sizes)
            lengths = sizes - 1
            lengths[-1] += not raw[-1].endswith(b"\n")
            lines = np.arange(line, line + len(raw))
            yield Records(raw, ends - sizes, lengths, lines)
            offset, line = int(ends[-1]), line + len(raw)
    if offset != chunk.end:
        raise InputError(f"{chunk.table.name} changed while it was read: start again")


def _indexed(chunk: Chunk, size: int) -> Iterator[Records]:
    index: Any = np.load(chunk.table.index, mmap_mode="r")  # type: ignore[arg-type]
    with chunk.table.path.open("rb") as opened:
        for begin in range(chunk.start, chunk.end, size):
            starts, lengths, lines = np.array(index[begin : min(begin + size, chunk.end)]).T
            opened.seek(int(starts[0]))
            content = opened.read(int(starts[-1] + lengths[-1] - starts[0]))
            places = zip((starts - starts[0]).tolist(), lengths.tolist(), strict=True)
            yield Records([content[a : a + n] for a, n in places], starts, lengths, lines)
