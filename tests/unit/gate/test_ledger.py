import pytest

from trainyard.errors import InputError
from trainyard.evaluation.scores import Score
from trainyard.gate.ledger import Attempt, items_digest, others, record


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


def test_items_are_known_by_what_was_asked_not_by_the_answers():
    one = [Score(i, "s", "accuracy", "candidate", 1.0) for i in "ab"]
    other = [Score(i, "s", "rougeL", "base", 0.0) for i in "ba"]
    assert items_digest(one) == items_digest(other)
    assert items_digest(one) != items_digest(one[:1])


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "attempts.jsonl"
    path.write_text('{"model": "m"}\n')
    with pytest.raises(InputError, match=r"attempts\.jsonl:1"):
        others(path, Attempt("m", "a", "i", "PASS"))
