"""Records of a table, by position: raw bytes with their line and byte offset."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.data.containers import Table


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
    if chunk.table.index is not None:
        yield from _indexed(chunk)
        return
    content = _read(chunk.table.path, chunk.start, chunk.end)
    offset, line = chunk.start, chunk.first_line
    pieces = content.split(b"\n")
    del content
    if not pieces[-1]:
        pieces.pop()
    for raw in pieces:
        yield line, offset, raw
        offset += len(raw) + 1
        line += 1


def _indexed(chunk: Chunk) -> Iterator[tuple[int, int, bytes]]:
    index: Any = np.load(chunk.table.index, mmap_mode="r")[chunk.start : chunk.end]  # type: ignore[arg-type]
    if not len(index):
        return
    base = int(index[0, 0])
    content = _read(chunk.table.path, base, int(index[-1, 0] + index[-1, 1]))
    for start, length, line in index.tolist():
        yield line, start, content[start - base : start - base + length]


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as opened:
        opened.seek(start)
        return opened.read(end - start)
