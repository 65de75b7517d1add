from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data.characters import SCRIPTS
from trainyard.data.duplicates import candidates, canonical_texts, occurring_again, repeats
from trainyard.data.finish import in_order
from trainyard.data.grams import contains, table_of
from trainyard.data.leakage import asked_and_told
from trainyard.data.rows import encode, in_file
from trainyard.data.scan import Scanner, join
from trainyard.data.shingles import distinct, distinct_grams, similarities, unit_hashes

NOTHING = np.empty(0, np.uint64)


def scan(*texts: bytes) -> Any:
    """Of rows without a prompt."""
    joined, bounds = join([part for text in texts for part in (b"", text)])
    return Scanner(NOTHING, NOTHING, NOTHING).scan(np.frombuffer(joined, np.uint8), bounds)


def plain_jaccard(one: str, other: str) -> float:
    """Word 3-grams in plain Python."""
    sets = []
    for text in (one, other):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def similar(one: bytes, other: bytes, common: Any = NOTHING) -> float:
    """Of two answers without prompts."""
    pairs = np.array([[0, 1]])
    return float(similarities(*join([b"", one, b"", other]), pairs, table_of(common))[0, 0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The quick brown fox jumps over the dog", "the quick brown fox, jumps over a dog!"),
        ("a b c d e f g", "h i j k l m n"),
        ("Größe über alles in Straße Ä", "größe ÜBER alles in straße ä"),
        ("x y z x y z x y z", "x y z x y"),
    ],
)
def test_similarity_is_that_of_plain_python(one: str, other: str) -> None:
    assert similar(one.encode(), other.encode()) == pytest.approx(plain_jaccard(one, other))


def test_signatures_estimate_similarity_as_minhash_must() -> None:
    """The share of equal hashes is an estimate of the Jaccard similarity (Broder 1997)."""
    rng = np.random.default_rng(5)
    words = [f"w{n}" for n in range(3000)]
    found = []
    for _ in range(300):
        one = rng.choice(words, 120)
        other = one.copy()
        other[rng.integers(0, 120, 2)] = "changed"
        texts = [" ".join(t).encode() for t in (one, other)]
        bands = scan(*texts)[1]
        found.append(((bands[:, 0] == bands[:, 1]).mean(), similar(*texts) ** 6))
    equal, expected = np.mean(found, axis=0)
    assert equal == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("text", "script", "units"),
    [
        ("Hello, world", "latin", 2),
        ("42 is 7", "latin", 3),
        ("你好世界", "han", 4),
        ("日本語のテキスト", "kana", 8),
        ("Привет мир", "cyrillic", 2),
        ("مرحبا بالعالم", "arabic", 2),
        ("สวัสดี", "thai", 6),
        ("안녕 세계", "hangul", 2),
        ("नमस्ते", "devanagari", 1),
        ("", "none", 0),
    ],
)
def test_scripts_and_units(text: str, script: str, units: int) -> None:
    (row,) = scan(text.encode())[0]
    assert (SCRIPTS[row.script], row.units) == (script, units)
    assert row.answer_chars == len(text)
    assert len(unit_hashes(text.encode())[0]) == units


def test_common_grams_are_left_out_unless_nothing_else_is_there() -> None:
    frame, more = b"the frame of all rows", b"the frame of all rows and more"
    common = distinct_grams([b"", frame])
    assert similar(frame, more) == pytest.approx(3 / 5)
    assert similar(frame, more, common) == 0
    assert similar(frame, frame, common) == 1


def test_prompts_and_answers_are_compared_apart() -> None:
    texts = [b"one two three four", b"five six seven eight", b"one two three four", b"other words"]
    whole, answer = similarities(*join(texts), np.array([[0, 1]]), table_of(NOTHING))[0]
    assert 0 < whole < 1
    assert answer == 0


@given(st.sets(st.integers(0, 2**64 - 1), max_size=200), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_a_table_holds_what_it_was_made_of(values: set[int], other: int) -> None:
    table = table_of(np.array(sorted(values), np.uint64))
    assert all(contains(table, np.uint64(v)) for v in values)
    assert contains(table, np.uint64(other)) == (other in values)


def test_a_pair_shares_a_band_and_comes_once() -> None:
    one = [b"the very same words in the very same order", b"something else again"]
    _, bands = scan(*one, one[0], one[0])
    assert candidates([bands], np.ones(4, bool)).tolist() == [[0, 2], [0, 3], [2, 3]]
    assert candidates([bands], np.array([False, True, False, True])).tolist() == []


@given(st.lists(st.integers(0, 2**64 - 1), max_size=100), st.integers(0, 5))
@settings(deadline=None)
def test_whatever_occurs_again_is_found(values: list[int], twice: int) -> None:
    keys = np.array([*values, *values[:twice]], np.uint64)
    found = occurring_again(keys).tolist()
    assert found == sorted({*found})
    assert {i for i, key in enumerate(keys) if (keys == key).sum() > 1} <= {*found}


TEXT = st.text(st.sampled_from('ab "\\/\n\t\x01\x7fé中😀\u2028'), max_size=30)


@given(st.lists(st.tuples(TEXT, TEXT, st.integers(0, 3)), min_size=1, max_size=10))
@settings(deadline=None)
def test_canonical_lines_show_their_texts(rows: list[tuple[str, str, int]]) -> None:
    lines, texts = [], []
    for number, (asked, told, kind) in enumerate(rows):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        if kind == 1:
            turns = [{"role": "system", "content": '","source":{"'}, *turns]
        body = {"kind": "sft", "messages": turns}
        if kind == 2:
            body = {"kind": "pretrain", "text": told}
        meta = {"note": ',"source":{'} if kind == 3 else {}
        lines.append(in_file("a.jsonl")(*encode(body), number, meta).rstrip(b"\n"))
        texts += [text.encode() for text in asked_and_told(body)]
    joined, bounds = canonical_texts(lines)
    assert joined == join(texts)[0]
    assert bounds.tolist() == join(texts)[1].tolist()


def test_a_repeat_names_the_first_row_like_it() -> None:
    ids = np.array([[1, 1], [2, 2], [1, 1], [1, 3]], np.uint64)
    assert repeats(ids).tolist() == [-1, -1, 0, -1]


@pytest.mark.parametrize("highest", [3, 2**63], ids=["equal halves", "any"])
def test_ids_are_in_the_order_of_their_bytes(highest: int) -> None:
    ids = np.random.default_rng(1).integers(0, highest, (100, 2)).astype(np.uint64)
    assert [row.tobytes() for row in in_order(ids)] == sorted(row.tobytes() for row in ids)


def test_distinct_is_sorted() -> None:
    assert distinct(np.array([3, 1, 3, 2], np.uint64)).tolist() == [1, 2, 3]
    assert distinct(NOTHING).tolist() == []
