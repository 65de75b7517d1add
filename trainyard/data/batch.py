"""Some records of a chunk as rows: what is asked, what is told, and what else they hold.

Most rows are one question and one answer in text. Where their lines are alike, compiled loops take
the two texts out of them; any other row is read as a body. `tests/unit/data/test_batch.py` holds
both to what `RowReader` reads.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trainyard.data.formats import Body
from trainyard.data.lanes import HOLES, Lanes
from trainyard.data.leakage import asked_and_told
from trainyard.data.learn import lane_of
from trainyard.data.lines import Records
from trainyard.data.messages import RowProblem, text_of
from trainyard.data.rows import RowReader
from trainyard.data.scan import join
from trainyard.data.structure import refuse_unusable

SYSTEM = ("system", "developer")
MOST_LANES, MOST_TRIES = 8, 24
"""Of one table: kinds of line that go fast, and rows that are tried for another."""


@dataclass
class Batch:
    """Usable rows in order; `taken[i]` is the position of row i among the records."""

    taken: NDArray[np.int64]
    text: bytes
    """Asked and told of each row in turn, as `join` puts them."""
    bounds: NDArray[np.int64]
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

    def asked(self, i: int) -> str:
        return self.text[self.bounds[i, 0] : self.bounds[i, 1]].decode()

    def told(self, i: int) -> str:
        return self.text[self.bounds[i, 1] + 1 : self.bounds[i, 2]].decode()

    def body(self, i: int) -> Body:
        found = self.bodies.get(i)
        return found if found is not None else conversation(self.asked(i), self.told(i))

    def replace(self, bodies: dict[int, Body]) -> None:
        """Rows with other bodies; asked and told follow."""
        texts: list[bytes] = []
        for i, (begin, middle, end) in enumerate(self.bounds.tolist()):
            if i in bodies:
                texts += map(str.encode, asked_and_told(bodies[i]))
            else:
                texts += self.text[begin:middle], self.text[middle + 1 : end]
        self.bodies |= bodies
        self.text, self.bounds = join(texts)


def conversation(asked: str, told: str) -> Body:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return {"kind": "sft", "messages": turns}


@dataclass
class Row:
    """A record that was read as a body."""

    asked: str
    told: str
    body: Body | None
    """None where it is one question and one answer."""
    aside: str
    meta: dict[str, Any]


class BatchReader:
    """Reads records of one table; lines like others before them go fast."""

    def __init__(self, reader: RowReader) -> None:
        self.reader, self.lanes = reader, Lanes()
        self.tries = MOST_TRIES if reader.table.records == "json" else 0

    def read(self, records: Records) -> Batch:
        content = np.frombuffer(records.content, np.uint8)
        which = np.full(len(records), -1, np.int64)
        spans = np.zeros((len(records), HOLES, 3), np.int64)
        place = content, records.starts, records.lengths
        self.lanes.match(*place, self.reader.max_bytes, 0, which, spans)
        problems: list[tuple[int, str, str]] = []
        rows: dict[int, Row] = {}
        for position in np.flatnonzero(which < 0).tolist():
            if which[position] >= 0:  # by a lane that a row before it showed
                continue
            raw = records.raw(position)
            try:
                rows[position] = row = self._row(raw)
            except RowProblem as problem:
                problems.append((position, *problem.args))
                continue
            if row.body is None and not row.meta and self._learn(raw):
                self.lanes.match(*place, self.reader.max_bytes, position + 1, which, spans)
        usable = which >= 0
        usable[[*rows]] = True
        taken = np.flatnonzero(usable)
        texts = [text.encode() for row in rows.values() for text in (row.asked, row.told)]
        text, bounds = self.lanes.lay(*place[:2], taken, which, spans, texts)
        places = np.searchsorted(taken, [*rows]).tolist()
        others = list(zip(places, rows.values(), strict=True))
        return Batch(
            taken,
            text,
            bounds,
            bodies={i: row.body for i, row in others if row.body is not None},
            aside={i: row.aside for i, row in others if row.aside},
            metas={i: row.meta for i, row in others if row.meta},
            problems=problems,
        )

    def _row(self, raw: bytes) -> Row:
        body, meta = self.reader.read(raw)
        refuse_unusable(body)
        asked, told, aside, plain = texts_of(body)
        return Row(asked, told, None if plain else body, aside, meta)

    def _pair(self, raw: bytes) -> tuple[str, str] | None:
        try:
            row = self._row(raw)
        except RowProblem:
            return None
        return None if row.meta or row.body is not None else (row.asked, row.told)

    def _learn(self, raw: bytes) -> bool:
        """Whether the line shows a lane that is not known."""
        if not self.tries or len(self.lanes.known) == MOST_LANES:
            return False
        self.tries -= 1
        lane = lane_of(raw, self._pair)
        if lane is None or lane in self.lanes.known:
            return False
        self.lanes.add(lane)
        return True


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
