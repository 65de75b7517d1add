"""Evaluation samples: canonical rows of a file in which every row must be usable."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from trainyard.data.containers import open_table
from trainyard.data.lines import cut, first, records
from trainyard.data.locate import locate
from trainyard.data.messages import RowProblem
from trainyard.data.rows import RowReader, encode, in_file
from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec


def read_samples(path: Path | str, spec: SourceSpec | None = None) -> Iterator[dict[str, Any]]:
    """Canonical rows in file order. Raises InputError naming file and line of the first bad row."""
    spec = spec if spec is not None else SourceSpec(path=str(path))
    with tempfile.TemporaryDirectory(prefix="trainyard-samples-") as scratch:
        files = locate(spec, Path(scratch))
        left = files[0].spec.rows
        for found in files:
            table = open_table(found.path, found.name, 0, found.spec, Path(scratch))
            reader, place = RowReader(table, found.spec), in_file(found.name)
            chunks, left = first(cut(table, 1 << 24), left)
            for chunk in chunks:
                for line, _, raw in records(chunk):
                    if not raw.strip():
                        continue
                    try:
                        body, meta = reader.read(raw)
                    except RowProblem as problem:
                        code, what = problem.args
                        raise InputError(f"{found.name}, line {line}: {code}: {what}") from None
                    row_id, content = encode(body)
                    yield orjson.loads(place(row_id, content, line, meta))
