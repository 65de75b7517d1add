"""From a file of any known container to bytes whose rows can be read by position.

Recognised by content; the suffix decides only between shapes that look alike. Compressed and
columnar files are unpacked beside the work; text stays where it is, with an index of its records
where lines are not records (CSV, JSON arrays).
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from trainyard.data.formats import TEXTS, Shapes
from trainyard.data.messages import RowProblem
from trainyard.errors import InputError
from trainyard.files import digest_file, digest_json
from trainyard.recipe.data import SourceSpec

BOM = b"\xef\xbb\xbf"
UNREADABLE = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the sheet as csv",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save the sheet as csv",
    b"\x1f\x9d": "compressed with compress: unpack it",
    b"BZh": "compressed with bzip2: unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or use zstd",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"%PDF": "a PDF: extract its text first",
    b"SQLite": "an SQLite database: export a table as csv",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


@dataclass(frozen=True)
class Table:
    """One input file whose records can be read."""

    name: str
    """As the user knows it."""
    path: Path
    """Where the bytes of the records are: the file itself, or what was unpacked from it."""
    records: Literal["json", "csv", "text"]
    source: int
    """Index of the source in the recipe."""
    folder: Path
    """Relative image paths start here."""
    digest: str
    index: Path | None = None
    """Array [n, 3] of start, length and line of each record; None where every line is one."""
    header: tuple[str, ...] = ()
    delimiter: str = ","
    has_bom: bool = False
    dvc_md5: str | None = None


def open_table(file: Path, name: str, source: int, spec: SourceSpec, work: Path) -> Table:
    """Raises InputError, naming `name`, for whatever cannot hold rows."""
    try:
        with file.open("rb") as opened:
            head = opened.read(65536)
        digest = digest_file(file)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    if not head:
        raise InputError(f"{name} is empty (0 bytes)")
    table = Table(name, file, "json", source, file.parent, digest)
    scratch = work / "unpacked" / digest_json([name, digest])[:24]
    suffixes = [s.lower() for s in Path(name).suffixes]
    if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd":
        table = replace(table, path=_decompress(file, name, scratch))
        suffixes = suffixes[:-1]
        with table.path.open("rb") as opened:
            head = opened.read(65536)
        if not head:
            raise InputError(f"{name} holds nothing: it unpacks to 0 bytes")
    if head[:4] in (b"PAR1", b"ARRO", b"\xff\xff\xff\xff"):
        from trainyard.data.columnar import to_lines  # noqa: PLC0415  (pyarrow only when used)

        def fits(columns: list[str], others: dict[str, str]) -> None:
            _known_columns(columns, name, spec, others)

        lines = scratch.with_suffix(".jsonl")
        return replace(table, path=to_lines(table.path, name, lines, fits))
    for magic, what in UNREADABLE.items():
        if head.startswith(magic):
            raise InputError(f"{name} is {what}")
    return _text(table, head, suffixes[-1] if suffixes else "", scratch, spec)


def _decompress(file: Path, name: str, scratch: Path) -> Path:
    target = scratch.with_suffix(".bytes")
    if target.is_file():
        return target
    partial = scratch.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            for block in _blocks(file):
                out.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name} is damaged or cut off: {error}") from None
    return partial.replace(target)


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    if gzipped:
        with gzip.open(file) as opened:
            while block := opened.read(1 << 20):
                yield block
        return
    from trainyard.data.columnar import unzst  # noqa: PLC0415  (pyarrow only when used)

    yield from unzst(file)


def _known_columns(
    columns: list[str], name: str, spec: SourceSpec, others: Mapping[str, str]
) -> None:
    """Raises InputError when no row can be usable; `others` are the types that hold no text."""
    fields = {column: field for field, column in spec.columns.items()}
    if spec.only_columns:
        columns = [c for c in columns if c in fields]
    shapes = Shapes(spec.format)
    try:
        shape = shapes.recognise(frozenset(fields.get(c, c) for c in columns))
    except RowProblem as problem:
        code, what = problem.args
        if code == "ambiguous_format":  # null columns may decide it row by row
            return
        seen = f"its columns are {', '.join(columns)}"[:200]
        raise InputError(f"{name} holds no known format: {what}; {seen}") from None
    for column, type_ in others.items():
        if fields.get(column, column) in shape.needs & TEXTS:
            raise InputError(
                f"{name}: its column {column} is {type_[:80]}, and a format {shape.name} needs "
                "text there"
            )


def _text(table: Table, head: bytes, suffix: str, scratch: Path, spec: SourceSpec) -> Table:
    table = replace(table, has_bom=head.startswith(BOM))
    start = head.removeprefix(BOM).lstrip()
    first, _, rest = start.partition(b"\n")
    if suffix in (".csv", ".tsv"):
        return _csv(table, suffix, scratch, spec)
    if start[:1] == b"[" and _begins_array(first, rest, suffix):
        return replace(table, index=_array_index(table, scratch))
    if suffix in (".jsonl", ".ndjson", ".json") or start[:1] in (b"{", b"["):
        _one_object(table, first)
        return table
    if b"\0" in head:
        raise InputError(f"{table.name} is binary and no known container: it begins {head[:8]!r}")
    if suffix in ("", ".text") and any(d in first for d in (b",", b"\t", b";")):
        return _csv(table, suffix, scratch, spec)
    if suffix in (".txt", ".md", ".text", ""):
        return replace(table, records="text")
    raise InputError(
        f"{table.name} is no known container: use jsonl, json, csv, tsv, parquet, arrow or txt"
    )


def _begins_array(first: bytes, rest: bytes, suffix: str) -> bool:
    """`[` opens a JSON array of rows, unless this line or the next is a row of its own."""
    try:
        value = orjson.loads(first)
    except orjson.JSONDecodeError:
        try:
            orjson.loads(rest.lstrip().partition(b"\n")[0])
        except orjson.JSONDecodeError:
            return True
        return first.strip() == b"["
    if rest.strip() or not all(isinstance(v, dict) for v in value):
        return False
    return bool(value) or suffix == ".json"


def _one_object(table: Table, first: bytes) -> None:
    """Refuse one pretty-printed object, which would be a broken row per line."""
    if first.strip() not in (b"{", b"[") or table.path.stat().st_size > 1 << 26:
        return
    try:
        value = orjson.loads(table.path.read_bytes().removeprefix(BOM))
    except orjson.JSONDecodeError:
        return
    if isinstance(value, dict):
        keys = ", ".join(list(value)[:5])
        raise InputError(f"{table.name} is one JSON object ({keys}), not an array or lines of rows")


def _array_index(table: Table, scratch: Path) -> Path:
    from trainyard.data.kernels import array_elements  # noqa: PLC0415  (numba)

    content = np.fromfile(table.path, np.uint8)
    return _save_index(array_elements(content, 3 if table.has_bom else 0), table.name, scratch)


def _save_index(found: Any, name: str, scratch: Path) -> Path:
    if not len(found):
        raise InputError(f"{name} holds no rows")
    target = scratch.with_suffix(".npy")
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch.with_suffix(".partial").open("wb") as out:
        np.save(out, np.asarray(found, np.int64).reshape(-1, 3))
    return scratch.with_suffix(".partial").replace(target)


def _csv(table: Table, suffix: str, scratch: Path, spec: SourceSpec) -> Table:
    with table.path.open("rb") as opened:
        opened.seek(3 if table.has_bom else 0)
        sample = [raw for raw, _, _ in _records(opened, limit=50)]
    delimiter = _delimiter(sample, suffix, table.name)
    header = tuple(name.strip() for name in _fields(sample[0], delimiter, table.name))
    if len(sample) < 2:
        raise InputError(f"{table.name} has a header and no rows")
    if sample[1].strip() == sample[0].strip():
        raise InputError(f"{table.name} has its header twice, in lines 1 and 2: remove one")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{table.name} has two columns named {', '.join(twice)}")
    _known_columns(list(header), table.name, spec, {})
    with table.path.open("rb") as opened:
        opened.seek(3 if table.has_bom else 0)
        found = [(start, len(raw), line) for raw, start, line in _records(opened)]
    index = _save_index(found[1:], table.name, scratch)
    return replace(table, records="csv", index=index, header=header, delimiter=delimiter)


def _records(
    opened: io.BufferedReader, limit: int | None = None, longest: int = 1 << 20
) -> Iterator[tuple[bytes, int, int]]:
    """Raw record, its offset, its line; quotes may span lines, but not past `longest` bytes."""
    line, produced = 0, 0
    while limit is None or produced < limit:
        start, first = opened.tell(), line + 1
        record = opened.readline()
        if not record:
            return
        line += 1
        while record.count(b'"') % 2 and len(record) < longest:
            more = opened.readline()
            if not more:
                break
            line += 1
            record += more
        if record.count(b'"') % 2:  # never closed: only its first line is lost
            opened.seek(start)
            record, line = opened.readline(), first
        produced += 1
        yield record.rstrip(b"\r\n"), start, first


def _fields(record: bytes, delimiter: str, name: str) -> list[str]:
    try:
        return next(csv.reader([record.decode()], delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        raise InputError(f"{name}: its header cannot be read as UTF-8 csv") from None


def _delimiter(sample: list[bytes], suffix: str, name: str) -> str:
    """The delimiter of header and rows. Raises InputError when they disagree."""
    widths: dict[str, tuple[int, float]] = {}
    for delimiter in ",\t;|":
        columns = len(_fields(sample[0], delimiter, name))
        if columns > 1:
            rows = [r.decode(errors="replace") for r in sample[1:] if r.strip()]
            same = [len(f) == columns for f in csv.reader(rows, delimiter=delimiter)]
            widths[delimiter] = columns, sum(same) / len(same) if same else 1.0
    if not widths:
        others = sorted({d for d in ",\t;|" for r in sample[1:5] if d.encode() in r})
        if others and suffix == ".tsv":
            raise InputError(f"{name}: no tab in its header: {sample[0][:80].decode()!r}")
        return ","
    best = max(widths, key=lambda d: (widths[d][1], widths[d][0]))
    rivals = [d for d in widths if d != best and widths[d][1] > 0.5]
    if rivals:
        raise InputError(
            f"{name} has two delimiters: {best!r} and {rivals[0]!r} both fit its header"
        )
    if widths[best][1] < 0.5:
        raise InputError(
            f"{name} has two delimiters: its header has {widths[best][0]} columns by {best!r}, "
            f"but only {widths[best][1]:.0%} of its first rows have"
        )
    return best
