"""Concept drift: jurors on logged answers, and fresh labelled rows, over real HTTP."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.services.evaluation.test_judge import blocks
from trainyard.evaluation.scores import Score, write_rows
from trainyard.monitor import quality
from trainyard.monitor.finding import Health
from trainyard.monitor.quality import Judged, Labelled
from trainyard.recipe import Recipe, read_recipe

HOW = {"suite": "essay", "baseline": 20, "answers": 60, "margin": 0.1}


def recipe(url: str, rows: Path | None = None, **watched: Any) -> Recipe:
    raw = read_recipe(Path("recipes/quickstart.yaml")).model_dump()
    raw["evaluate"]["suites"] += (
        {"name": "essay", "kind": "rubric", "data": "recipes/quickstart/eval.jsonl",
         "jurors": [{"base_url": url, "model": "judge-2026-01-01", **watched}]},
    )  # fmt: skip
    raw["deploy"]["log_fraction"] = 1
    raw["monitor"]["judge"] = HOW
    if rows is not None:
        raw["monitor"]["labelled"] = {"suite": "tickets", "data": str(rows)}
    return Recipe.model_validate(raw)


def grader(chat: Any, model: str = "judge-2026-01-01") -> Any:
    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        grade = 5 if blocks(body)["answer"].startswith("right") else 1
        told = {"analysis": "read", "criteria": {"correctness": grade, "helpfulness": grade}}
        return 200, chat(json.dumps(told), model=model), {}

    return reply


def rows(first: int, texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"at": float(first + i), "request_id": f"r{first + i}", "answer": f"{text} {first + i}",
         "messages": [{"role": "user", "content": f"question {first + i}"}]}
        for i, text in enumerate(texts)
    ]  # fmt: skip


def test_answers_that_jurors_like_less_than_at_first_are_a_breach(
    tmp_path: Path, openai_server: Any, chat: Any
) -> None:
    server = openai_server(grader(chat))
    wanted = recipe(server.url)
    spec = wanted.monitor.judge
    assert spec is not None
    good = rows(1, ["right"] * 20)
    judged, found = quality.judge_sample(spec, wanted, good, Judged(), tmp_path)
    assert found.health is Health.INCONCLUSIVE  # only the beginning is there
    again, _ = quality.judge_sample(spec, wanted, good, judged, tmp_path)
    assert again == judged
    assert len(server.seen) == 20, "an answer is graded once"
    later = [*good, *rows(21, ["wrong"] * 60)]
    kept = Judged.model_validate_json(judged.model_dump_json())
    _, found = quality.judge_sample(spec, wanted, later, kept, tmp_path)
    assert (found.health, found.then) == (Health.BREACH, "release")
    assert "judge: 0 bad of the first 20, 60 of 60 since" in found.reason
    assert found.evidence["account"]["calls"] == 60


def test_another_model_behind_the_jurors_name_begins_anew(
    tmp_path: Path, openai_server: Any, chat: Any
) -> None:
    first, other = openai_server(grader(chat)), openai_server(grader(chat, "judge-2026-06-06"))
    wanted = recipe(first.url)
    spec = wanted.monitor.judge
    assert spec is not None
    judged, _ = quality.judge_sample(spec, wanted, rows(1, ["right"] * 20), Judged(), tmp_path)
    swapped, found = quality.judge_sample(
        spec, recipe(other.url), rows(21, ["wrong"] * 10), judged, tmp_path
    )
    assert (swapped.stream.n, found.health) == (10, Health.INCONCLUSIVE)


def test_no_grade_and_no_money_are_inconclusive(
    tmp_path: Path, openai_server: Any, chat: Any
) -> None:
    broken = openai_server(lambda path, body: (200, chat("I would rather not say"), {}))
    dear = openai_server(grader(chat))
    for wanted in (recipe(broken.url), recipe(dear.url, usd_per_million_output=1e6)):
        spec = wanted.monitor.judge
        assert spec is not None
        judged, found = quality.judge_sample(spec, wanted, rows(1, ["a"] * 3), Judged(), tmp_path)
        assert (judged.stream.n, found.health) == (0, Health.INCONCLUSIVE)
        assert "no grade for 3 answers" in found.reason
    assert dear.seen == []


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder with its scores at the release: 95 of 100 right."""
    place = tmp_path / "version"
    (place / "evaluation").mkdir(parents=True)
    scores = [
        Score(f"i{i}", "tickets", "exact_match", "candidate", float(i % 20 > 0)) for i in range(100)
    ]
    write_rows(place / "evaluation" / "scores.jsonl", scores)
    return place


def labelled(path: Path, n: int) -> Path:
    made = [{"prompt": f"fresh question {i}", "completion": f"answer {i}"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize(
    ("right", "health"),
    [(lambda i: True, Health.HEALTHY), (lambda i: i % 2 == 0, Health.BREACH)],
    ids=["as before", "half of them wrong"],
)
def test_fresh_rows_are_asked_once_and_compared_with_the_release(
    tmp_path: Path, openai_server: Any, chat: Any, version: Path, right: Any, health: Health
) -> None:
    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        number = int(body["messages"][-1]["content"].split()[-1])
        return 200, chat(f"answer {number}" if right(number) else "another"), {}

    server = openai_server(reply)
    data = labelled(tmp_path / "fresh.jsonl", 80)
    wanted = recipe("http://127.0.0.1:9", data)
    spec = wanted.monitor.labelled
    assert spec is not None
    target: Any = SimpleNamespace(
        name="m", endpoint=lambda: server.url, replay_headers=lambda: {"x-trainyard-replay": "t"}
    )
    first = quality.fresh_rows(spec, wanted, target, version, "a" * 64, Labelled())
    assert first.finding is not None
    assert first.finding.health is health, first.finding.reason
    assert all(seen["headers"]["x-trainyard-replay"] == "t" for seen in server.seen)
    again = quality.fresh_rows(spec, wanted, target, version, "a" * 64, first)
    assert (again, len(server.seen)) == (first, 80)
    labelled(data, 81)
    quality.fresh_rows(spec, wanted, target, version, "a" * 64, again)
    assert len(server.seen) == 161, "rows that changed are asked again"


def test_rows_that_are_missing_or_unanswered_are_inconclusive(
    tmp_path: Path, openai_server: Any, version: Path
) -> None:
    server = openai_server(lambda path, body: (500, {"error": {"message": "no"}}, {}))
    data = tmp_path / "fresh.jsonl"
    wanted = recipe("http://127.0.0.1:9", data)
    spec = wanted.monitor.labelled
    assert spec is not None
    target: Any = SimpleNamespace(
        name="m", endpoint=lambda: server.url, replay_headers=lambda: dict[str, str]()
    )
    for words in ("is not there yet", "0 of 5 fresh rows were answered"):
        found = quality.fresh_rows(spec, wanted, target, version, "a" * 64, Labelled()).finding
        assert found is not None
        assert found.health is Health.INCONCLUSIVE
        assert words in found.reason
        labelled(data, 5)
