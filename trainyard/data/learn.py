"""What lines have in common with one that was read, found by reading it with other texts."""

import itertools
import re
from collections.abc import Callable

from trainyard.data.lanes import ASKED, MORE, TOLD, Lane

Read = Callable[[bytes], tuple[str, str] | None]
"""Asked and told of a line; None unless it is one question and one answer and nothing else."""

STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?', re.DOTALL)
MOST_VALUES = 16


def lane_of(raw: bytes, read: Read) -> Lane | None:
    """The lane of a line; None where its texts do not become asked and told as a lane says."""
    values = [found.span(1) for found in STRING.finditer(raw) if found[2] is None]
    if len(values) > MOST_VALUES:
        return None
    marks = {i: f"\ue0a0{i}\ue0a1" for i in range(len(values))}
    found = {i: _part(read(_with(raw, values, {i: mark})), mark) for i, mark in marks.items()}
    holes = [i for i in marks if found[i] is not None]
    parts = [found[i] for i in holes]
    if parts.count(TOLD) != 1 or parts.count(ASKED) != 1 or parts.count(MORE) > 1:
        return None
    lane = Lane(
        _around(raw, [values[i] for i in holes]), tuple(part for part in parts if part is not None)
    )
    for texts in itertools.product(*(("", marks[i]) for i in holes)):
        given = dict(zip(holes, texts, strict=True))
        if read(_with(raw, values, given)) != _said(lane, texts):
            return None
    return lane


def _part(pair: tuple[str, str] | None, mark: str) -> int | None:
    if pair is None:
        return None
    asked, told = pair
    if told == mark:
        return TOLD
    if asked == mark or asked.startswith(f"{mark}\n"):
        return ASKED
    return MORE if asked.endswith(f"\n{mark}") else None


def _with(raw: bytes, values: list[tuple[int, int]], texts: dict[int, str]) -> bytes:
    made, at = b"", 0
    for i, text in sorted(texts.items()):
        start, end = values[i]
        made += raw[at:start] + text.encode()
        at = end
    return made + raw[at:]


def _around(raw: bytes, values: list[tuple[int, int]]) -> tuple[bytes, ...]:
    ends = [0, *(at for span in values for at in span), len(raw)]
    return tuple(raw[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))


def _said(lane: Lane, texts: tuple[str, ...]) -> tuple[str, str]:
    said = dict(zip(lane.parts, texts, strict=True))
    return "\n".join(t for p in (ASKED, MORE) if (t := said.get(p))), said[TOLD]
