"""The fast way to read and write rows against the plain one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data.batch import Batch, BatchReader, texts_of
from trainyard.data.containers import Table
from trainyard.data.lay import lay_bodies, lay_lines
from trainyard.data.lines import Records
from trainyard.data.messages import RowProblem
from trainyard.data.rows import RowReader, encode, in_file
from trainyard.data.structure import refuse_unusable
from trainyard.recipe.data import SourceSpec

TABLE = Table("rows.jsonl", Path("rows.jsonl"), "json", 0, Path(), "")
values = st.text(max_size=8) | st.none() | st.just("") | st.integers(0, 1) | st.just({"a": "b"})
rows = st.fixed_dictionaries(
    {"instruction": values, "output": values},
    optional={"input": values, "system": values, "id": values, "history": st.just([["q", "a"]])},
)


def read(content: list[bytes]) -> Batch:
    """Records as a file of these lines has them."""
    lengths = np.array([len(line) for line in content], np.int64)
    starts = np.cumsum(lengths + 1) - lengths - 1
    records = Records(b"\n".join(content), starts, lengths, starts, starts)
    return BatchReader(RowReader(TABLE, SourceSpec(path=""))).read(records)


def plainly(content: list[bytes]) -> tuple[list[Any], list[tuple[int, str, str]]]:
    """Usable rows and problems, each record read by itself."""
    usable, problems = [], []
    for position, raw in enumerate(content):
        try:
            body, meta = RowReader(TABLE, SourceSpec(path="")).read(raw)
            refuse_unusable(body)
        except RowProblem as problem:
            problems.append((position, *problem.args))
        else:
            usable.append((position, body, *texts_of(body)[:2], meta))
    return usable, problems


def read_rows(batch: Batch) -> list[Any]:
    return [
        (position, batch.body(i), batch.asked(i), batch.told(i), batch.metas.get(i, {}))
        for i, position in enumerate(batch.taken.tolist())
    ]


@settings(deadline=None)  # the first call may compile
@given(st.lists(rows, max_size=20))
def test_rows_are_those_of_the_reader_whatever_came_before(given: list[dict[str, Any]]) -> None:
    content = [orjson.dumps(row) for row in given]
    for key in (b"output", b"input", b"instruction"):  # keys given twice
        for value in (b"0", b'""', b'"b"'):
            again = b',"%b":%b}' % (key, value)
            content += [line.removesuffix(b"}") + again for line in content[: len(given)]]
    batch = read(content)
    assert (read_rows(batch), batch.problems) == plainly(content)


texts = st.text(st.sampled_from('ab"\\/{}:,\n\t\x00\x02\x1fé中😀\u2028 '), max_size=12)
shapes = st.one_of(
    st.tuples(st.just(("instruction", "input", "output")), st.tuples(texts, texts, texts)),
    st.tuples(st.just(("output", "instruction")), st.tuples(texts, texts)),
    st.tuples(st.just(("prompt", "completion")), st.tuples(texts, texts)),
    st.tuples(st.just(("question", "answer", "source")), st.tuples(texts, texts, texts)),
    st.tuples(st.sampled_from(("messages", "conversations")), st.tuples(texts, texts)),
)


def made_line(shape: tuple[Any, tuple[str, ...]], ascii_only: bool, spaced: bool) -> bytes:
    names, given = shape
    row: Any = dict(zip(names, given, strict=False))
    if isinstance(names, str):
        keys = ("role", "content") if names == "messages" else ("from", "value")
        roles = ("user", "assistant") if names == "messages" else ("human", "gpt")
        talk = zip(roles, given, strict=True)
        row = {names: [dict(zip(keys, turn, strict=True)) for turn in talk]}
    marks = (", ", ": ") if spaced else (",", ":")
    return json.dumps(row, ensure_ascii=ascii_only, separators=marks).encode()


damage = st.tuples(
    st.integers(0, 200),
    st.sampled_from([
        b"", b"x", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\\",
        b'"', b"\x01", b"\\u00e9", b"\\ud83d", b"\\ud83d\\ude00", b"\\/", b"\\x", b"\\u12g4",
        "é".encode(),
    ]),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(shapes, st.booleans(), st.booleans(), st.none() | damage), max_size=12))
def test_damaged_escaped_and_foreign_text_is_read_as_the_reader_reads_it(given: Any) -> None:
    content = []
    for shape, ascii_only, spaced, broken in given:
        line = made_line(shape, ascii_only, spaced)
        content.append(line)
        if broken is not None:
            at, what = broken[0] % len(line), broken[1]
            content.append(line[:at] + what + line[at + 1 :])
    batch = read(content)
    assert (read_rows(batch), batch.problems) == plainly(content)


def test_lines_that_are_alike_need_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ("instruction", "input", "output"), ('say "é"', "", "a\n\\b😀")
    content = [made_line(shape, ascii_only, True) for ascii_only in (True, False)] * 50
    reads = []
    plain = RowReader.read
    monkeypatch.setattr(RowReader, "read", lambda self, raw: reads.append(raw) or plain(self, raw))
    batch = read(content)
    assert len(batch) == 100
    assert len(reads) < 15  # one row, and what it took to learn from it
    assert {(batch.asked(i), batch.told(i)) for i in range(100)} == {('say "é"', "a\n\\b😀")}


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.booleans()), min_size=1, max_size=9))
def test_lines_are_those_of_orjson(given: list[tuple[str, str, bool]]) -> None:
    batch = read([orjson.dumps({"instruction": q, "output": a}) for q, a, _ in given])
    made = {i: orjson.dumps(batch.body(i)) for i, (_, _, other) in enumerate(given) if other}
    metas = {i: orjson.dumps({"n": i}) for i in made}
    text, bounds = batch.text, batch.bounds
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
