"""Pairwise suites: both sides answer, then the judges compare."""

import logging
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from trainyard.evaluation.asking import Question
from trainyard.evaluation.chat import chat_question
from trainyard.evaluation.judge.suite import Duel, judge_suite
from trainyard.evaluation.samples import Item, read_items, require
from trainyard.evaluation.scores import Judgement
from trainyard.recipe.evaluate import EvaluateSpec, PairwiseSuite

log = logging.getLogger(__name__)

METRICS = ("win_rate",)
Rows = Mapping[tuple[str, str, str], Mapping[str, Any]]


def items(suite: PairwiseSuite) -> list[Item]:
    found = read_items(suite.data, limit=suite.limit)
    require(found, suite.data, reference=suite.opponent == "reference")
    return found


def asked_arms(suite: PairwiseSuite, arms: Sequence[str]) -> list[str]:
    """Candidate and opponent; nobody when the opponent is an arm that this run lacks."""
    if suite.opponent == "reference":
        return ["candidate"]
    if suite.opponent not in arms:
        log.warning("suite %s is left out: there is no %s", suite.name, suite.opponent)
        return []
    return ["candidate", suite.opponent]


def question(suite: PairwiseSuite, item: Item, arm: str, seed: int) -> Question:
    return chat_question(suite.name, item, arm, max_tokens=suite.max_tokens, seed=seed)


def judge_all(
    suites: Sequence[tuple[PairwiseSuite, Sequence[Item]]],
    rows: Rows,
    spec: EvaluateSpec,
    cache: Path,
    today: date,
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judgements of all suites and the facts about their judges."""
    judgements: list[Judgement] = []
    facts: dict[str, Any] = {}
    for suite, samples in suites:
        duels, failed = _duels(suite, samples, rows)
        judgements += failed
        if duels:
            given, facts[suite.name] = judge_suite(suite, duels, spec, cache, today)
            judgements += given
    return judgements, facts


def _duels(
    suite: PairwiseSuite, samples: Sequence[Item], rows: Rows
) -> tuple[list[Duel], list[Judgement]]:
    """Duels that both sides answered, and an invalid judgement for each of the others."""
    duels: list[Duel] = []
    failed: list[Judgement] = []
    for item in samples:
        mine = rows.get((suite.name, item.id, "candidate"))
        if mine is None:
            continue
        theirs: Mapping[str, Any] = {"text": item.reference}
        if suite.opponent != "reference":
            theirs = rows[suite.name, item.id, suite.opponent]
        error = mine.get("error") or theirs.get("error")
        if error is None:
            duels.append(Duel(item, mine["text"], str(theirs["text"])))
            continue
        failed += [
            Judgement(item.id, juror.model, order, "invalid", suite.name, suite.opponent,
                      note=f"no answer: {error}")
            for juror in suite.jurors
            for order in ("AB", "BA")
        ]  # fmt: skip
    return duels, failed
