"""`facts.parquet`: one line per usable row, to ask why and to compare versions with."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainyard.data.characters import SCRIPTS
from trainyard.data.drift import Values, named
from trainyard.data.job import BIT, CODES, KINDS
from trainyard.data.merge import QUARANTINE, SIDES, Merged
from trainyard.errors import InputError
from trainyard.files import read_json

PLAIN = (
    "line", "offset", "length", "turns", "samples", "tokens", "trained", "lost", "prompt_chars",
    "answer_chars", "units",
)  # fmt: skip


def write_facts(merged: Merged, file: Path) -> None:
    """One row group per chunk: file, line, id, side, cluster, codes and sizes of each row."""
    writer = None
    for number in range(len(merged.places)):
        rows = merged.chunk_rows(number)
        table = pa.table(_columns(merged, number, rows))
        if writer is None:
            named_columns = ["file", "side", "kind", "script"]
            writer = pq.ParquetWriter(
                file, table.schema, use_dictionary=named_columns, write_statistics=False
            )
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _columns(merged: Merged, number: int, rows: slice) -> dict[str, Any]:
    facts = merged.facts[rows]
    table = merged.job.chunk(number).table
    ids = np.ascontiguousarray(facts["id"]).tobytes()
    columns: dict[str, Any] = {
        "file": _names((table.name,), np.zeros(len(facts), np.uint8)),
        "id": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(facts), [None, pa.py_buffer(ids)]
        ),
        "side": _names(SIDES, merged.side[rows]),
        "kind": _names(KINDS, facts["kind"]),
        "script": _names(SCRIPTS, facts["script"]),
        "cluster": _plain(merged.roots[rows]),
        "flags": _plain(facts["flags"]),
    }
    for name in PLAIN:
        columns[name] = _plain(facts[name])
    for code in CODES:
        flagged = (facts["flags"] & np.uint32(BIT[code])) != 0
        packed = np.packbits(flagged, bitorder="little").tobytes()
        columns[code] = pa.Array.from_buffers(pa.bool_(), len(facts), [None, pa.py_buffer(packed)])
    return columns


# From buffers: `pa.array` imports pandas, where installed, to ask whether it was given its own.
def _plain(values: NDArray[Any]) -> Any:
    content = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, content])


def _names(names: tuple[str, ...], values: NDArray[np.uint8]) -> Any:
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(encoded))]
    texts = pa.StringArray.from_buffers(len(names), buffers[1], buffers[2])
    return pa.DictionaryArray.from_arrays(_plain(values.astype(np.int32)), texts)


@dataclass(frozen=True)
class Former:
    """What drift needs of the version before."""

    digest: str
    lines: int
    found: Counter[str]
    values: dict[str, Values]
    scripts: dict[str, int]
    names: dict[str, dict[str, int]]
    ids: NDArray[np.uint64]


def read_former(folder: Path) -> Former:
    """Raises InputError when `folder` holds no finished version."""
    try:
        manifest = read_json(folder / "manifest.json")
        verdict = read_json(folder / "verdict.json")
        table = pq.read_table(
            folder / "facts.parquet",
            columns=["id", "side", "script", "prompt_chars", "answer_chars", "turns", "tokens"],
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no data version to compare with: {error.filename}") from None
    side = table["side"].combine_chunks().indices.to_numpy(zero_copy_only=False)
    kept = side != QUARANTINE
    raw = b"".join(i for i in table["id"].to_pylist())
    ids = np.frombuffer(raw, np.uint64).reshape(-1, 2)[kept, 1]
    scripts = table["script"].combine_chunks().indices.to_numpy(zero_copy_only=False)[kept]
    return Former(
        digest=manifest["digest"],
        lines=verdict["lines"],
        found=Counter(verdict["reasons"]) + Counter(verdict["warnings"]),
        values={
            name: table[name].to_numpy()[kept].astype(np.float64)
            for name in ("prompt_chars", "answer_chars", "turns", "tokens")
        },
        scripts=named(SCRIPTS, scripts.astype(np.uint8)),
        names=manifest["names"],
        ids=ids,
    )
