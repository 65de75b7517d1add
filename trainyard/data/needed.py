"""Which rows a set of patterns can match at all: bytes that a match must hold, looked for at once.

A regular expression is taken apart into the ways it can match, and each way into runs of bytes that
stand one after the other in every such match. Of the runs the rarest FOUR bytes are looked for; a
row without any of them needs no automaton.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.kernels import Bytes, compiled, lent
from trainyard.data.patterns import SEPARATOR

FOUR, FEWEST = 4, 3
MOST_COPIES = 4
Class = frozenset[int]
Way = tuple[Class | None, ...]
"""Bytes of a match in turn; None stands for any number of any bytes."""
GAP: Way = (None,)
ANY: Class = frozenset(range(256))
CODE_POINT = re.compile(r"\\x\{([0-9a-f]+)\}")
FOLDED = "\u212a\u017f"
"""What `(?i)` takes for k and s, besides their own cases."""


def _bytes(text: str) -> Class:
    return frozenset(text.encode())


DIGITS = _bytes("0123456789")
WORD = DIGITS | _bytes("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
CATEGORIES = {
    sre.CATEGORY_DIGIT: DIGITS, sre.CATEGORY_WORD: WORD, sre.CATEGORY_SPACE: _bytes("\t\n\f\r "),
}  # fmt: skip
COMMON = "able about cannot could find help language like model provide should will word would your"
LETTERS = "etaoinsrhldcumfpgwybvkxjqz"
SHARES = [1e-3] * 128 + [1e-2] * 128
for _i, _letter in enumerate(LETTERS.encode()):
    SHARES[_letter] = 0.1 * 0.88**_i
SHARES[ord(" ")], SHARES[ord("@")], SHARES[ord(SEPARATOR)] = 0.17, 1e-4, 1e-6
"""About how often a byte occurs in prose. Which window is taken depends on it, and speed alone."""


def windows(regexes: Iterable[str]) -> list[tuple[Class, ...]]:
    """Each text with a match of a regex (in RE2's syntax) holds one of these, FOUR bytes each.

    The last bytes may be those after the match. Raises ValueError when a match may hold fewer
    than FEWEST bytes in a row that are known.
    """
    found = {window for regex in regexes for window in _of(regex)}
    found |= {_filled(tuple(map(frozenset, zip(c.encode())))) for c in FOLDED}
    for place in range(FOUR):  # windows that differ in one place only are one
        alike: dict[tuple[Class, ...], Class] = {}
        for window in found:
            rest = window[:place] + window[place + 1 :]
            alike[rest] = alike.get(rest, frozenset()) | window[place]
        found = {(*rest[:place], c, *rest[place:]) for rest, c in alike.items()}
    return sorted(found, key=lambda window: (_rate(window), [sorted(c) for c in window]))


@cache
def _of(regex: str) -> frozenset[tuple[Class, ...]]:
    tree = _parser.parse(CODE_POINT.sub(lambda found: chr(int(found[1], 16)), regex))
    ways = _ways(tree, bool(tree.state.flags & re.IGNORECASE))
    return frozenset(_rarest(way, regex) for way in {*ways})


def _rarest(way: Way, regex: str) -> tuple[Class, ...]:
    best: tuple[float, tuple[Class, ...]] | None = None
    for i in range(len(way) - FEWEST + 1):
        known = way[i : i + FOUR]
        if None in known:
            known = known[:FEWEST]
        window = tuple(c for c in known if c is not None)
        if len(window) == len(known):
            rate = _rate(window)
            if best is None or rate < best[0]:
                rate += _is_common(window)
            if best is None or rate < best[0]:
                best = rate, window
    if best is None:
        raise ValueError(f"{regex}: a match of it need not hold {FEWEST} known bytes in a row")
    return _filled(best[1])


def _rate(window: tuple[Class, ...]) -> float:
    return math.prod(map(_share, window))


@cache
def _share(known: Class) -> float:
    return sum(SHARES[b] for b in known)


@cache
def _is_common(window: tuple[Class, ...]) -> bool:
    text = COMMON.encode()
    places = (text[i : i + len(window)] for i in range(len(text) - len(window) + 1))
    return any(all(b in c for b, c in zip(at, window, strict=True)) for at in places)


def _filled(window: tuple[Class, ...]) -> tuple[Class, ...]:
    return (*window, *[ANY] * (FOUR - len(window)))


def _ways(nodes: Iterable[tuple[Any, Any]], fold: bool) -> list[Way]:
    made: list[Way] = [()]
    for kind, value in nodes:
        made = [a + b for a, b in product(made, _node(kind, value, fold))]
    return made


def _node(kind: Any, value: Any, fold: bool) -> list[Way]:
    if kind is sre.AT:
        return [()]
    if kind is sre.LITERAL:
        return _one_of([(kind, value)], fold)
    if kind is sre.IN:
        return _one_of(value, fold)
    if kind is sre.BRANCH:
        return [way for branch in value[1] for way in _ways(branch, fold)]
    if kind is sre.SUBPATTERN:
        return _ways(value[3], fold or bool(value[1] & re.IGNORECASE))
    if kind is sre.MAX_REPEAT:
        return _repeated(value[0], value[1], _ways(value[2], fold))
    return [GAP]


def _one_of(choices: Sequence[tuple[Any, Any]], fold: bool) -> list[Way]:
    """One character: its ASCII choices together, each other one as its bytes."""
    ascii: set[int] = set()
    others: list[Way] = []
    for kind, value in choices:
        if kind is sre.CATEGORY and value in CATEGORIES:
            ascii |= CATEGORIES[value]
        elif kind is sre.RANGE and value[1] < 128:
            ascii |= {*range(value[0], value[1] + 1)}
        elif kind is sre.LITERAL and value < 128:
            ascii.add(value)
        elif kind is sre.LITERAL and not (fold and chr(value).lower() != chr(value).upper()):
            others.append(tuple(frozenset([b]) for b in chr(value).encode()))
        else:
            return [GAP]
    if fold:
        ascii |= {ord(case) for b in ascii for case in (chr(b).lower(), chr(b).upper())}
    return [*([(frozenset(ascii),)] if ascii else []), *others]


def _repeated(least: int, most: Any, ways: list[Way]) -> list[Way]:
    if least == 0:
        return [(), *(ways if most == 1 else _repeated(1, most, ways))]
    copies = min(least, MOST_COPIES)
    made = [sum(some, ()) for some in product(ways, repeat=copies)]
    if most == least == copies:
        return made
    if most is sre.MAXREPEAT and least == copies:  # so many, or more
        return [*made, *(a + b + GAP + b for a, b in product(made, ways))]
    return [a + GAP + a for a in made]  # the first of them, and the last


@compiled
def _mark(text: Any, bounds: Any, tables: Any, marked: Any) -> None:
    text, tables = lent(text), lent(tables)
    one, two, three, four = tables[0], tables[1], tables[2], tables[3]
    for r in range(len(bounds)):
        row = text[bounds[r, 0] : bounds[r, 2] + 1]  # and the separator after it
        a, b, c, d = row[:-3], row[1:], row[2:], row[3:]
        found = np.uint64(0)
        for i in range(len(d)):
            found |= one[a[i]] & two[b[i]] & three[c[i]] & four[d[i]]
        marked[r] = found != 0


class Needed:
    def __init__(self, regexes: Iterable[str]) -> None:
        self.tables = np.zeros((FOUR, 256), np.uint64)
        found = windows(regexes)
        for n, window in enumerate(found):
            bit = np.uint64(1 << max(0, n + 64 - len(found)))  # the rarest share the first
            for place, known in enumerate(window):
                self.tables[place, [*known]] |= bit

    def rows(self, text: Bytes, bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows, laid out as by `scan.join`, may hold a match."""
        marked = np.empty(len(bounds), np.bool_)
        _mark(text, bounds, self.tables, marked)
        return marked
