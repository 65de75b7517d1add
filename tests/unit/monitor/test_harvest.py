"""From feedback to a data-set version that a recipe can train on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainyard import files
from trainyard.data.check import check
from trainyard.errors import NotFound, Refused
from trainyard.monitor import harvest
from trainyard.recipe import Recipe, read_recipe
from trainyard.recipe.data import DataSpec, Limits
from trainyard.serving.answers import redact

EVAL = [json.loads(line) for line in Path("recipes/quickstart/eval.jsonl").read_text().splitlines()]


@pytest.fixture
def recipe() -> Recipe:
    return read_recipe(Path("recipes/quickstart.yaml"))


def log(home: Path, rows: Sequence[dict[str, Any]], feedback: Sequence[dict[str, Any]]) -> None:
    folder = home / "serving" / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("requests", rows), ("feedback", feedback)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)


def answered(i: int, text: str = "", **rest: Any) -> dict[str, Any]:
    asked = text or f"Question {i}: what does the invoice number {i * 37} of March stand for?"
    return {
        "at": float(i), "request_id": f"r{i}", "version": "ab"[i % 2] * 64, "variant": "champion",
        "messages": [{"role": "user", "content": asked}], "answer": f"It stands for {i * 91}.",
        "flags": [], **rest,
    }  # fmt: skip


def said(i: int, score: float = 1.0, **rest: Any) -> dict[str, Any]:
    return {"at": 100.0 + i, "request_id": f"r{i}", "score": score, "comment": "", **rest}


def rows_of(made: harvest.Harvest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.folder / harvest.ROWS).read_text().splitlines()]


def test_corrections_and_liked_answers_become_rows_with_their_lineage(
    tmp_path: Path, recipe: Recipe
) -> None:
    words = [
        said(0),
        said(1, -1.0, correction="It is the sum of call +49 170 1234567."),
        said(2, -1.0),  # neither liked nor corrected
        said(3, 1.0, correction="  "),
        said(99),  # nobody logged it
    ]
    log(tmp_path, [*(answered(i) for i in range(4)), answered(5, flags=["refusal"])],
        [*words, said(5)])  # fmt: skip
    made = harvest.collect(recipe, tmp_path)
    corrected, liked = rows_of(made)
    assert corrected["messages"][-1]["content"] == "It is the sum of call <number>."
    assert (corrected["request_id"], corrected["version"]) == ("r1", "b" * 64)
    assert liked["messages"][-1]["content"] == "It stands for 0."
    assert (made.rows, made.corrected) == (2, 1)
    assert made.answered_by == {"a" * 64: 1, "b" * 64: 1}
    assert made.refused == {
        "not_liked": 1, "empty_correction": 1, "not_logged": 1, "bad_answer": 1
    }  # fmt: skip
    assert made.digest == files.digest_file(made.folder / harvest.ROWS)
    assert set(made.eval_sets) == set(recipe.evaluate.eval_sets)
    on_disk = json.loads((made.folder / harvest.MANIFEST).read_text())
    assert on_disk == made.model_dump(mode="json")


def test_rows_of_evaluation_sets_never_enter(tmp_path: Path, recipe: Recipe) -> None:
    sample = EVAL[3]["messages"][1]["content"]
    longer = f"Hello there! {sample} Thanks a lot for looking into it."
    log(tmp_path, [answered(0), answered(1, sample), answered(2, longer)],
        [said(0), said(1, correction="anything"), said(2)])  # fmt: skip
    made = harvest.collect(recipe, tmp_path)
    assert [row["request_id"] for row in rows_of(made)] == ["r0"]
    assert made.refused == {"leak": 2}


def test_rows_of_the_monitors_own_labelled_set_never_enter(tmp_path: Path, recipe: Recipe) -> None:
    fresh = tmp_path / "fresh.jsonl"
    fresh.write_text(json.dumps({"prompt": answered(1)["messages"][0]["content"],
                                 "completion": "x"}) + "\n")  # fmt: skip
    changed = recipe.model_dump()
    changed["monitor"]["labelled"] = {"suite": "tickets", "data": str(fresh)}
    log(tmp_path, [answered(0), answered(1)], [said(0), said(1)])
    made = harvest.collect(Recipe.model_validate(changed), tmp_path)
    assert [row["request_id"] for row in rows_of(made)] == ["r0"]
    assert str(fresh) in made.eval_sets


def test_an_evaluation_sample_is_known_in_the_log_though_its_numbers_are_hidden(
    tmp_path: Path, recipe: Recipe
) -> None:
    asked = "Please call me on +49 170 1234567 or write to jo@example.com about it."
    samples = tmp_path / "eval.jsonl"
    samples.write_text(json.dumps({"prompt": asked, "completion": "x"}) + "\n")
    changed = recipe.model_dump()
    changed["monitor"]["labelled"] = {"suite": "tickets", "data": str(samples)}
    log(tmp_path, [answered(0), answered(1, redact(asked))], [said(0), said(1)])
    made = harvest.collect(Recipe.model_validate(changed), tmp_path)
    assert [row["request_id"] for row in rows_of(made)] == ["r0"]


def test_a_question_asked_twice_is_one_row_and_a_correction_wins(
    tmp_path: Path, recipe: Recipe
) -> None:
    same = "What does the invoice number 4711 of last March stand for, please?"
    log(tmp_path, [answered(0, same, answer="A sum."), answered(2, same, answer="A sum.")],
        [said(0), said(2)])  # fmt: skip
    made = harvest.collect(recipe, tmp_path)
    assert (made.rows, made.refused) == (1, {"exact_duplicate": 1})


def test_the_next_version_has_the_rows_of_the_last_and_names_it(
    tmp_path: Path, recipe: Recipe
) -> None:
    log(tmp_path, [answered(0)], [said(0)])
    first = harvest.collect(recipe, tmp_path)
    assert harvest.collect(recipe, tmp_path) == first, "the same again is the same"
    log(tmp_path, [answered(1)], [said(1)])  # the gateway's log was turned meanwhile
    second = harvest.collect(recipe, tmp_path)
    assert [row["request_id"] for row in rows_of(second)] == ["r0", "r1"]
    assert second.parent == first.digest


def test_a_version_passes_the_data_check_as_data_train(tmp_path: Path, recipe: Recipe) -> None:
    log(tmp_path, [answered(i) for i in range(30)],
        [said(i, correction=f"Number {i * 91} is for month {i}.") for i in range(30)])  # fmt: skip
    made = harvest.collect(recipe, tmp_path)
    spec = DataSpec(train=(str(made.folder / harvest.ROWS),), limits=Limits(min_rows=10))
    found = check(spec, tmp_path / "out", eval_sets=list(recipe.evaluate.eval_sets), processes=1)
    assert found.verdict in ("pass", "warn"), found.problems
    assert found.train + found.val == made.rows == 30
    assert found.leaks == 0


def test_nothing_said_and_nothing_left_are_one_sentence(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(NotFound, match=r"no feedback on a logged answer .*log_fraction"):
        harvest.collect(recipe, tmp_path)
    log(tmp_path, [answered(0, answer=" ")], [said(0)])
    with pytest.raises(Refused, match="no row is left of 1"):
        harvest.collect(recipe, tmp_path)
