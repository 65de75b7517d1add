"""The fast way to read and write rows against the plain one."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data.batch import Batch, BatchReader, texts_of
from trainyard.data.containers import Table
from trainyard.data.lay import lay_bodies, lay_lines
from trainyard.data.lines import Records
from trainyard.data.messages import RowProblem
from trainyard.data.rows import RowReader, encode, in_file
from trainyard.data.scan import join
from trainyard.data.structure import refuse_unusable
from trainyard.recipe.data import SourceSpec

TABLE = Table("rows.jsonl", Path("rows.jsonl"), "json", 0, Path(), "")
values = st.text(max_size=8) | st.none() | st.just("") | st.integers(0, 1) | st.just({"a": "b"})
rows = st.fixed_dictionaries(
    {"instruction": values, "output": values},
    optional={"input": values, "system": values, "id": values, "history": st.just([["q", "a"]])},
)


def read(content: list[bytes]) -> Batch:
    nothing = np.zeros(len(content), np.int64)
    return BatchReader(RowReader(TABLE, SourceSpec(path=""))).read(
        Records(content, nothing, nothing, nothing)
    )


@settings(deadline=None)  # the first call may compile
@given(st.lists(rows, max_size=20))
def test_rows_are_those_of_the_reader_whatever_came_before(given: list[dict[str, Any]]) -> None:
    content = [orjson.dumps(row) + b"\n" for row in given]
    for key in (b"output", b"input", b"instruction"):  # keys given twice
        for value in (b"0", b'""', b'"b"'):
            again = b',"%b":%b}\n' % (key, value)
            content += [line.removesuffix(b"}\n") + again for line in content[: len(given)]]
    batch, usable = read(content), 0
    expected: list[tuple[int, str, str]] = []
    for position, raw in enumerate(content):
        try:
            body, meta = RowReader(TABLE, SourceSpec(path="")).read(raw.strip())
            refuse_unusable(body)
        except RowProblem as problem:
            expected.append((position, *problem.args))
            continue
        assert batch.taken[usable] == position
        assert batch.body(usable) == body
        assert (batch.asked[usable], batch.told[usable]) == texts_of(body)[:2]
        assert batch.metas.get(usable, {}) == meta
        usable += 1
    assert usable == len(batch)
    assert batch.problems == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.booleans()), min_size=1, max_size=9))
def test_lines_are_those_of_orjson(given: list[tuple[str, str, bool]]) -> None:
    batch = read([orjson.dumps({"instruction": q, "output": a}) for q, a, _ in given])
    made = {i: orjson.dumps(batch.body(i)) for i, (_, _, other) in enumerate(given) if other}
    metas = {i: orjson.dumps({"n": i}) for i in made}
    text, bounds = join(batch.texts())
    content, ends = lay_bodies(np.frombuffer(text, np.uint8), bounds, made)
    encoded = [encode(batch.body(i)) for i in range(len(batch))]
    assert content[: ends[-1]].tobytes() == b"".join(body for _, body in encoded)
    ids = np.frombuffer(b"".join(row_id for row_id, _ in encoded), np.uint8).reshape(-1, 16)
    numbers = np.array([10**i for i in range(len(batch))])
    ready = {0: b"of its own\n"}
    lines, ends = lay_lines(content, ends, ids, numbers, 'a "b"', metas, ready)
    place = in_file('a "b"')
    expected = [
        ready.get(i, place(*encoded[i], 10**i, {"n": i} if i in metas else {}))
        for i in range(len(batch))
    ]
    assert lines.tobytes() == b"".join(expected)
    assert ends.tolist() == np.cumsum([len(line) for line in expected]).tolist()
