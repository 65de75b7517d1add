"""One record to one canonical row, or to the reason why not."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from trainyard.data.containers import BOM, Table
from trainyard.data.formats import Body, Shapes
from trainyard.data.messages import Message, RowProblem
from trainyard.recipe.data import SourceSpec


@dataclass
class RowReader:
    """Parses records of one table into canonical bodies."""

    table: Table
    spec: SourceSpec
    max_bytes: int = 10_000_000
    shapes: Shapes = field(init=False)
    renamed: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.shapes = Shapes(self.spec.format, self.spec.tags)
        self.renamed = {column: name for name, column in self.spec.columns.items()}

    def read(self, raw: bytes) -> tuple[Body, dict[str, Any]]:
        """Body and metadata of one record. Raises RowProblem."""
        if len(raw) > self.max_bytes:
            raise RowProblem("too_long", f"{len(raw):,} bytes; the limit is {self.max_bytes:,}")
        if self.table.records == "json":
            row = parse_json(raw)
        elif self.table.records == "csv":
            row = self._csv(raw)
        else:
            row = {"text": _decode(raw)}
        if self.spec.only_columns:
            spare = {k: v for k, v in row.items() if k not in self.renamed}
            row = {self.renamed[k]: v for k, v in row.items() if k in self.renamed}
            body, meta = self.shapes.body(row)
            return body, meta | spare
        if self.renamed:
            row = {self.renamed.get(k, k): v for k, v in row.items()}
        return self.shapes.body(row)

    def _csv(self, raw: bytes) -> dict[str, Any]:
        text = _decode(raw)
        if not text.strip():
            raise RowProblem("blank_line", "the line is empty")
        try:
            lines = io.StringIO(text, newline="")
            fields = next(csv.reader(lines, delimiter=self.table.delimiter, strict=True))
        except (csv.Error, StopIteration) as error:
            raise RowProblem("bad_csv", str(error)) from None
        header = self.table.header
        if len(fields) != len(header):
            raise RowProblem("bad_csv", f"{len(fields)} fields under {len(header)} columns")
        if tuple(f.strip() for f in fields) == header:
            raise RowProblem("repeated_header", "the header again")
        row: dict[str, Any] = {}
        for name, value in zip(header, fields, strict=True):
            row[name] = value
            if value[:1] in ("[", "{") and name not in ("tools", "text"):
                try:
                    row[name] = orjson.loads(value)
                except orjson.JSONDecodeError:
                    continue
        return row


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RowProblem("bad_utf8", f"byte {error.start} is {raw[error.start]:#04x}") from None


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object on one line. Raises RowProblem, also for a key given twice."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _not_json(raw, error) from None
    if type(row) is not dict:
        if not raw.strip():
            raise RowProblem("blank_line", "the line is empty")
        raise RowProblem("not_object", f"a JSON {type(row).__name__}, not an object")
    # Outside strings `":` ends a key and nothing else, so a surplus means a key was given twice.
    ends, keys = raw.count(b'":'), count_keys(row)
    if ends != keys and ends - raw.count(b'\\":') != keys:
        json.loads(raw, object_pairs_hook=_no_key_twice)
    return row


def _not_json(raw: bytes, error: orjson.JSONDecodeError) -> RowProblem:
    if not raw.strip():
        return RowProblem("blank_line", "the line is empty")
    try:
        raw.decode()
    except UnicodeDecodeError as found:
        return RowProblem("bad_utf8", f"byte {found.start} is {raw[found.start]:#04x}")
    if raw.startswith(BOM):
        return RowProblem("bad_json", "a byte order mark inside the file")
    return RowProblem("bad_json", f"{error.msg} at character {error.pos}")


def count_keys(value: Any) -> int:
    if type(value) is dict:
        return len(value) + _count_nested(value.values())
    if type(value) is list:
        return _count_nested(value)
    return 0


def _count_nested(values: Iterable[Any]) -> int:
    total = 0
    for value in values:
        kind = type(value)
        if kind is dict or kind is list:
            total += count_keys(value)
    return total


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowProblem("duplicate_key", f"the key {twice!r} is given twice")
    return made


def encode(body: Body) -> tuple[bytes, bytes]:
    """Content id (16 bytes of sha256) and JSON of a canonical body."""
    content = orjson.dumps(body)
    return hashlib.sha256(content).digest()[:16], content


def in_file(file: str) -> Callable[[bytes, bytes, int, dict[str, Any]], bytes]:
    """Makes canonical lines of one file: id, body, where it came from, what the body lacks."""
    name = orjson.dumps(file)

    def line_of(row_id: bytes, content: bytes, line: int, meta: dict[str, Any]) -> bytes:
        rest = orjson.dumps(meta) if meta else b"{}"
        return b'{"id":"%b",%b,"source":{"file":%b,"line":%d},"meta":%b}\n' % (
            row_id.hex().encode(), content[1:-1], name, line, rest
        )  # fmt: skip

    return line_of


def prompt_and_answer(body: Body) -> tuple[list[Message], list[Message]]:
    """Messages asked and messages to learn (of a preference: the chosen ones)."""
    kind = body["kind"]
    if kind == "sft":
        messages = body["messages"]
        return messages[:-1], messages[-1:]
    if kind == "preference":
        return body["prompt"], body["chosen"]
    if kind == "kto":
        return body["prompt"], body["completion"]
    if kind == "prompt_only":
        return body["prompt"], []
    return [], []
