"""Grams that are common in the data itself: the words of a template, not of a row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainyard.data.grams import LONG_GRAM, PROMPT_GRAM
from trainyard.data.leakage import asked_and_told
from trainyard.data.lines import Chunk, batches
from trainyard.data.messages import RowProblem
from trainyard.data.rows import RowReader
from trainyard.data.shingles import distinct_grams
from trainyard.data.units import U64
from trainyard.recipe.data import SourceSpec

ROWS = 2048
COMMON_SHARE = 0.02
FEWEST = 20
TRIED = 512
AT_ONCE = 1 << 18
"""Bytes that stay in the cache: of most records only their ends are looked for."""


@dataclass(frozen=True)
class Common:
    shingles: U64
    long: U64
    """13-grams."""
    prompt: U64
    """8-grams of prompts."""
    texts: list[str]
    """Some of the sampled texts, to try tokenizers on."""


def common_grams(chunks: Sequence[Chunk], sources: Sequence[SourceSpec], max_bytes: int) -> Common:
    """Grams in 2 % or more of about 2,048 rows spread over the data, and in 20 at least."""
    nothing = np.empty(0, np.uint64)
    texts = _sample(chunks, sources, max_bytes)
    shown = [f"{asked.decode()}\n{told.decode()}" for asked, told in texts[:TRIED]]
    least = max(FEWEST, COMMON_SHARE * len(texts))
    if len(texts) < FEWEST:
        return Common(nothing, nothing, nothing, shown)
    flat = [text for pair in texts for text in pair]
    return Common(
        _frequent(distinct_grams(flat), least),
        _frequent(distinct_grams(flat, LONG_GRAM), least),
        _frequent(distinct_grams(flat, PROMPT_GRAM, prompt=True), least),
        shown,
    )


def _frequent(found: U64, least: float) -> U64:
    ranked = np.sort(found)
    begins = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    frequent: U64 = ranked[begins[np.diff(np.r_[begins, len(ranked)]) >= least]]
    return frequent


def _sample(
    chunks: Sequence[Chunk], sources: Sequence[SourceSpec], max_bytes: int
) -> list[tuple[bytes, bytes]]:
    step = max(1, len(chunks) // 16)
    chosen = list(zip(chunks, sources, strict=True))[::step]
    per_chunk = ROWS // max(len(chosen), 1)
    texts: dict[bytes, tuple[bytes, bytes]] = {}
    for chunk, source in chosen:
        reader = RowReader(chunk.table, source, max_bytes)
        every = max(1, chunk.lines // per_chunk)
        for raw in _each(chunk, every):
            try:
                body, _ = reader.read(raw)
            except RowProblem:
                continue
            asked, told = asked_and_told(body)
            texts.setdefault(told.encode() + asked.encode(), (asked.encode(), told.encode()))
    return list(texts.values())


def _each(chunk: Chunk, every: int) -> Iterator[bytes]:
    """The first record of each `every`."""
    seen = 0
    for some in batches(chunk, AT_ONCE):
        for i in range(-seen % every, len(some), every):
            yield some.raw(i)
        seen += len(some)
