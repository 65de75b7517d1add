import numpy as np
import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data.needed import CODE_POINT, FOUR, Needed, windows
from trainyard.data.patterns import PATTERNS, SEPARATOR, Patterns
from trainyard.data.scan import join

ALL = Patterns({p.code for p in PATTERNS}, ["<\uff5cend\uff5c>", "</s>", "[UNK]"])
NEEDED = Needed(p.regex for p in ALL.patterns)
PROSE = (
    "It returns the number of the last line, as `len` does; see the next section for an example."
)


def marked(*rows: tuple[str, str], needed: Needed = NEEDED) -> list[bool]:
    text, bounds = join([part.encode() for row in rows for part in row])
    found: list[bool] = needed.rows(np.frombuffer(text, np.uint8), bounds).tolist()
    return found


def matching(regex: str) -> st.SearchStrategy[str]:
    """Texts that match, of Python's own reading of the pattern."""
    return st.from_regex(CODE_POINT.sub(lambda found: chr(int(found[1], 16)), regex))


@pytest.mark.parametrize("pattern", ALL.patterns, ids=lambda p: p.name)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_row_with_a_match_is_marked(pattern: object, data: st.DataObject) -> None:
    regex: str = pattern.regex  # type: ignore[attr-defined]
    found = data.draw(matching(regex), "text").encode("utf-8", "replace").decode()
    asked, between, told = f"{PROSE}{found}".partition(SEPARATOR)
    row = (asked, told) if between else (PROSE, found)
    if re2.search(regex, SEPARATOR.join(row)):
        assert marked((PROSE, PROSE), row, ("", ""))[1]


BITS = """i am 'm sorry can 't pa \u017f ss word = " \u212a k ey api _ - 1 3 19 4111 ( ) + . , @ a
:// : < | > </s> / [ ] INST insert {{ }} 抱歉 \uff0c我 无法 \u2019 AKIA sk hf_ eyJ secret lorem
ipsum dolor Z9 DE 00"""
PIECES = st.sampled_from([*BITS.split(), " ", "  ", "\n"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.lists(PIECES, max_size=12).map("".join)] * 2), min_size=1))
def test_what_is_not_marked_has_no_match(rows: list[tuple[str, str]]) -> None:
    for row, may in zip(rows, marked(*rows), strict=True):
        assert may or not ALL.set.Match(SEPARATOR.join(row))


@pytest.mark.parametrize("text", ["pa\u017fsword = q8Zr4Lw0Xc7V", "api_\u212aey: q8Zr4Lw0Xc7V"])
def test_letters_that_fold_to_ascii(text: str) -> None:
    assert ALL.set.Match(text)
    assert marked((PROSE, text)) == [True]


def test_prose_is_not_marked() -> None:
    few = Needed(pattern.regex for pattern in PATTERNS if pattern.code != "toxic")
    rows = (PROSE, PROSE), ("", ""), (PROSE, "mail ann@b.org")
    assert marked(*rows, needed=few) == [False, False, True]


def test_a_match_of_unknown_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="need not hold 3 known bytes"):
        windows([r"a.{2,4}b"])
    assert all(len(w) == FOUR for w in windows([r"abc"]))
