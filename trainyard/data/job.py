"""The work of one check, written down: any process can do any chunk of it, in any order."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.data.containers import Table
from trainyard.data.lines import Chunk
from trainyard.files import digest_json, read_json, write_json
from trainyard.recipe.data import Checks, DataSpec, SourceSpec

METHOD = 3
"""Rises when the same input would give other facts, so that no finished chunk is taken over."""

CODES = (*Checks.model_fields, "over_length")
BIT = {code: 1 << i for i, code in enumerate(CODES)}
KINDS = ("sft", "pretrain", "preference", "kto", "prompt_only", "tokenized")
KIND = {kind: i for i, kind in enumerate(KINDS)}

FACTS = np.dtype(
    [
        ("line", np.int64),
        ("offset", np.int64),
        ("length", np.int64),
        ("start", np.int64),
        ("size", np.int32),
        ("id", np.uint64, 2),
        ("flags", np.uint32),
        ("kind", np.uint8),
        ("turns", np.uint16),
        ("samples", np.uint16),
        ("tokens", np.int32),
        ("trained", np.int32),
        ("lost", np.int32),
        ("group", np.uint64),
        ("label", np.uint64),
        ("system", np.uint64),
        ("prompt_chars", np.int32),
        ("answer_chars", np.int32),
        ("units", np.int32),
        ("grams", np.int32),
        ("script", np.uint8),
        ("prompt_hash", np.uint64),
        ("answer_hash", np.uint64),
    ]
)
"""Per usable row. `start` and `size` are its canonical bytes in the chunk's rows file; `offset` and
`length` its raw bytes; `lost` the tokens that truncation cuts; group, label, system are hashes."""


OVERLAPS = np.dtype([("row", np.int64), ("sample", np.int32), ("share", np.float64)])
"""A usable row of the chunk, an evaluation sample, and the share of its grams in the row."""


@dataclass(frozen=True)
class Job:
    folder: Path
    spec: DataSpec
    tables: tuple[Table, ...]
    sources: tuple[SourceSpec, ...]
    """One per table: its source with what `dataset_info.json` said."""
    chunks: tuple[tuple[int, int, int, int, int], ...]
    """Table, start, end, first line, lines."""
    common: Path
    eval_sets: Path | None
    model: Path | None
    max_seq_len: int | None
    fast_tokens: bool
    """tiktoken gave the tokenizer's ids on a sample of these rows."""
    inputs: str
    """Digest of everything outside the tables that facts depend on."""

    def chunk(self, number: int) -> Chunk:
        table, start, end, first_line, lines = self.chunks[number]
        return Chunk(self.tables[table], start, end, first_line, lines)

    def place(self, number: int) -> Path:
        """Folder of a chunk's facts, named by what they depend on."""
        table, *span = self.chunks[number]
        source = self.sources[table].model_dump(mode="json")
        at = self.tables[table]
        key = digest_json([METHOD, self.inputs, at.name, at.digest, source, span])
        return self.folder / "chunks" / key[:32]

    def save(self) -> Path:
        made: dict[str, Any] = {
            "spec": self.spec.model_dump(mode="json"),
            "tables": [_jsonable(asdict(table)) for table in self.tables],
            "sources": [source.model_dump(mode="json") for source in self.sources],
            "chunks": self.chunks,
            "common": str(self.common),
            "eval_sets": _named(self.eval_sets),
            "model": _named(self.model),
            "max_seq_len": self.max_seq_len,
            "fast_tokens": self.fast_tokens,
            "inputs": self.inputs,
        }
        write_json(self.folder / "job.json", made)
        return self.folder / "job.json"

    @classmethod
    def load(cls, file: Path) -> "Job":
        found = read_json(file)
        return cls(
            folder=file.parent,
            spec=DataSpec.model_validate(found["spec"]),
            tables=tuple(_table(t) for t in found["tables"]),
            sources=tuple(SourceSpec.model_validate(s) for s in found["sources"]),
            chunks=tuple((c[0], c[1], c[2], c[3], c[4]) for c in found["chunks"]),
            common=Path(found["common"]),
            eval_sets=_path(found["eval_sets"]),
            model=_path(found["model"]),
            max_seq_len=found["max_seq_len"],
            fast_tokens=found["fast_tokens"],
            inputs=found["inputs"],
        )


def _jsonable(table: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in table.items()}


def _table(found: dict[str, Any]) -> Table:
    paths = {"path": Path(found["path"]), "folder": Path(found["folder"])}
    header: Sequence[str] = found["header"]
    return Table(**{**found, **paths, "index": _path(found["index"]), "header": tuple(header)})


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)
