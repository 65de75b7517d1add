"""Parquet, Arrow and zstd by pyarrow: unpacked to JSON lines or bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from trainyard.errors import InputError


def unzst(file: Path) -> Iterator[bytes]:
    """Raises EOFError when the stream is damaged."""
    try:
        with pa.CompressedInputStream(pa.OSFile(str(file)), "zstd") as opened:
            while block := opened.read(1 << 20):
                yield block
    except OSError as error:
        raise EOFError(str(error)) from None


def to_lines(
    file: Path, name: str, target: Path, fits: Callable[[list[str], dict[str, str]], None]
) -> Path:
    """Write `target`, whose line n is row n of the file.

    `fits` may refuse the columns; it gets their names, and the types of those that hold no text.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        schema, batches = _batches(file)
        others = {f.name: str(f.type) for f in schema if not _may_be_text(f.type)}
        fits(schema.names, others)
        with partial.open("wb") as out:
            for batch in batches:
                for row in batch.to_pylist():
                    out.write(orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS))
                    out.write(b"\n")
    except InputError:
        raise
    except (pa.ArrowException, OSError, orjson.JSONEncodeError) as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"{name} cannot be read as a table: {reason}") from None
    if not partial.stat().st_size:
        raise InputError(f"{name} has columns and no rows")
    return partial.replace(target)


def _may_be_text(type_: Any) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    kinds = ("is_string", "is_large_string", "is_string_view", "is_null")
    return any(getattr(pa.types, kind)(type_) for kind in kinds)


def _batches(file: Path) -> tuple[Any, Iterator[Any]]:
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic == b"PAR1":
        table = pq.ParquetFile(file)
        return table.schema_arrow, table.iter_batches(2048)
    source = pa.memory_map(str(file))
    if magic == b"ARRO":
        reader = pa.ipc.open_file(source)
        return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
    stream = pa.ipc.open_stream(source)
    return stream.schema, iter(stream)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    return str(value)
