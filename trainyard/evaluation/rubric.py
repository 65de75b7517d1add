"""Rubric suites: the candidate answers, then the judges grade each answer alone."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from trainyard.evaluation.asking import Question
from trainyard.evaluation.chat import chat_question
from trainyard.evaluation.judge.grades import Answered, grade_suite
from trainyard.evaluation.samples import Item, read_items, require
from trainyard.evaluation.scores import Judgement
from trainyard.recipe.evaluate import EvaluateSpec, RubricSuite

METRICS = ("rubric_score",)
Rows = Mapping[tuple[str, str, str], Mapping[str, Any]]


def items(suite: RubricSuite) -> list[Item]:
    found = read_items(suite.data, limit=suite.limit)
    require(found, suite.data, reference=False)
    return found


def question(suite: RubricSuite, item: Item, arm: str, seed: int) -> Question:
    return chat_question(suite.name, item, arm, max_tokens=suite.max_tokens, seed=seed)


def grade_all(
    suites: Sequence[tuple[RubricSuite, Sequence[Item]]],
    rows: Rows,
    spec: EvaluateSpec,
    cache: Path,
    today: date,
) -> tuple[list[Judgement], dict[str, Any]]:
    """Grades of all suites and the facts about their judges."""
    grades: list[Judgement] = []
    facts: dict[str, Any] = {}
    for suite, samples in suites:
        answers = []
        for item in samples:
            row = rows[suite.name, item.id, "candidate"]
            answers.append(Answered(item, str(row.get("text", "")), row.get("error")))
        given, facts[suite.name] = grade_suite(suite, answers, spec, cache, today)
        grades += given
    return grades, facts
