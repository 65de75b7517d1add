"""Some records of a chunk as rows: what is asked, what is told, and what else they hold.

Most rows are one question and one answer in text. They are read as two strings; their body is
built only for who asks. `tests/unit/data/test_batch.py` holds them to what `RowReader` reads.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from trainyard.data.formats import Body, Shapes
from trainyard.data.leakage import asked_and_told
from trainyard.data.lines import Records
from trainyard.data.messages import RowProblem, text_of
from trainyard.data.rows import RowReader
from trainyard.data.structure import refuse_unusable

SYSTEM = ("system", "developer")
Lane = tuple[str, str | None, str, tuple[str, ...], int]
"""Columns of the question, of more of it, of the answer, and those kept as metadata; and how many
bytes beyond question and answer a line has at least when it gives a key twice."""


@dataclass
class Batch:
    """Usable rows in order; `taken[i]` is the position of row i among the records."""

    taken: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    bodies: dict[int, Body] = field(default_factory=dict)
    """Of rows that are more than one question and one answer."""
    aside: dict[int, str] = field(default_factory=dict)
    """Other text (system, rejected, tool calls): left out of comparisons, patterns must see it."""
    metas: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Where there is any."""
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    """Position, code and detail of records that are no usable row."""

    def __len__(self) -> int:
        return len(self.taken)

    def body(self, i: int) -> Body:
        found = self.bodies.get(i)
        return found if found is not None else conversation(self.asked[i], self.told[i])

    def replace(self, i: int, body: Body) -> None:
        """Row `i` with another body; its asked and told follow."""
        self.bodies[i] = body
        self.asked[i], self.told[i] = asked_and_told(body)

    def texts(self) -> list[bytes]:
        """Asked and told of each row in turn."""
        made: list[bytes] = [b""] * (2 * len(self))
        made[0::2] = map(str.encode, self.asked)
        made[1::2] = map(str.encode, self.told)
        return made


def conversation(asked: str, told: str) -> Body:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return {"kind": "sft", "messages": turns}


class BatchReader:
    """Reads records of one table; columns seen before as one question, one answer go fast."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self.lanes: dict[tuple[str, ...], Lane] = {}
        mapped = reader.renamed or reader.spec.only_columns
        self.plain = reader.table.records == "json" and not mapped

    def read(self, records: Records) -> Batch:
        made = Batch()
        loads, lanes, longest = orjson.loads, self.lanes, self.reader.max_bytes
        take, ask, tell = made.taken.append, made.asked.append, made.told.append
        for position, raw in enumerate(records.raw):
            try:
                row = loads(raw)
                question, more, answer, spare, twice = lanes[tuple(row)]
                asked, told = row[question], row[answer]
                usual = type(asked) is type(told) is str
                if more is not None and (extra := row[more]):
                    usual = usual and type(extra) is str
                    asked = f"{asked}\n{extra}" if asked else extra
                # outside strings `":` ends a key and nothing else: more of them need a closer look
                if usual and len(raw) - len(asked) - len(told) >= twice:
                    usual = raw.count(b'":') == len(row)
            except (orjson.JSONDecodeError, KeyError, TypeError):
                usual = False
            if not usual or len(raw) > longest:
                self._closely(made, position, raw)
                continue
            if spare and (meta := {n: v for n in spare if (v := row[n]) is not None}):
                made.metas[len(made)] = meta
            take(position)
            ask(asked)
            tell(told)
        return made

    def _closely(self, made: Batch, position: int, raw: bytes) -> None:
        raw = raw.removesuffix(b"\n")
        try:
            body, meta = self.reader.read(raw)
            refuse_unusable(body)
        except RowProblem as problem:
            code, detail = problem.args
            made.problems.append((position, code, detail))
            return
        asked, told, aside, plain = texts_of(body)
        if plain:
            self._learn(raw)
        else:
            made.bodies[len(made)] = body
            if aside:
                made.aside[len(made)] = aside
        if meta:
            made.metas[len(made)] = meta
        made.taken.append(position)
        made.asked.append(asked)
        made.told.append(told)

    def _learn(self, raw: bytes) -> None:
        if not self.plain:
            return
        columns = tuple(orjson.loads(raw))
        if columns not in self.lanes:
            lane = lane_of(self.reader.shapes, columns)
            if lane is not None:
                self.lanes[columns] = lane


def lane_of(shapes: Shapes, columns: tuple[str, ...]) -> Lane | None:
    """How rows with these columns are one question and one answer, if they always are."""
    try:
        shape = shapes.recognise(frozenset(columns))
    except RowProblem:
        return None
    if shape.name != "alpaca" or shape.needs != {"instruction", "output"}:
        return None
    if {"system", "history", "tools", "images", "image"} & {*columns}:
        return None
    spare = tuple(c for c in columns if c not in shape.needs | shape.may)
    # `"k":0,` for a key, less one each for an input of 0 and for what joins question and input
    twice = len(orjson.dumps(dict.fromkeys(columns, ""))) + min(map(len, columns)) + 5 - 2
    return "instruction", "input" if "input" in columns else None, "output", spare, twice


def texts_of(body: Body) -> tuple[str, str, str, bool]:
    """What is asked, what is told, other text of the row, and: is it one question, one answer?"""
    messages = body.get("messages")
    if messages is not None and len(messages) == 2 and len(body) == 2:
        first, last = messages
        if first["role"] == "user" and last["role"] == "assistant":
            asked, told = first["content"], last["content"]
            if len(first) == len(last) == 2 and type(asked) is type(told) is str:
                return asked, told, "", True
    asked, told = asked_and_told(body)
    prompt = messages or body.get("prompt") or ()
    aside = [text_of(m["content"]) for m in prompt if m["role"] in SYSTEM]
    aside += [text_of(m["content"]) for m in body.get("rejected", ())]
    aside += [orjson.dumps(m["tool_calls"]).decode() for m in prompt if "tool_calls" in m]
    return asked, told, "\n".join([*aside, ""]) if aside else "", False
