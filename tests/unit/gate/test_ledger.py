import pytest

from trainyard.errors import InputError
from trainyard.gate.ledger import Attempt, others, record, sets_digest


def test_other_candidates_on_the_same_items_are_counted(tmp_path):
    path = tmp_path / "attempts.jsonl"
    for candidate in ("a", "b", "b", "c"):
        record(path, Attempt("m", candidate, "items", "FAIL"))
    record(path, Attempt("m", "d", "other items", "FAIL"))
    record(path, Attempt("another model", "e", "items", "FAIL"))
    assert others(path, Attempt("m", "c", "items", "PASS")) == 2
    assert others(path, Attempt("m", "z", "items", "PASS")) == 3


def test_the_same_decision_is_written_once(tmp_path):
    path = tmp_path / "attempts.jsonl"
    for _ in range(3):
        record(path, Attempt("m", "a", "items", "PASS"))
    assert len(path.read_text().splitlines()) == 1


def test_sets_are_known_by_their_content_not_by_their_place_or_the_share_that_is_asked():
    assert sets_digest({"a/eval.jsonl": "1", "x": "2"}) == sets_digest({"y": "2", "b": "1"})
    assert sets_digest({"a": "1"}) != sets_digest({"a": "2"})


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "attempts.jsonl"
    path.write_text('{"model": "m"}\n')
    with pytest.raises(InputError, match=r"attempts\.jsonl:1"):
        others(path, Attempt("m", "a", "i", "PASS"))
