"""Ask every arm everything, score every answer, leave `answers.jsonl` and `scores.jsonl`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from trainyard.errors import InputError
from trainyard.evaluation import documents, task
from trainyard.evaluation.asking import Answers, Arm, Question, ask
from trainyard.evaluation.metrics import signatures
from trainyard.evaluation.samples import Item
from trainyard.evaluation.scores import ARMS, Score, write_rows
from trainyard.files import write_json
from trainyard.gate.foresight import Planned
from trainyard.recipe.evaluate import EvaluateSpec, PerplexitySuite, Suite, TaskSuite

log = logging.getLogger(__name__)

__all__ = ["Arm", "evaluate", "planned"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class _Prepared:
    suite: Suite
    items: Sequence[Item]
    failures: Mapping[str, str]


def evaluate(
    spec: EvaluateSpec,
    arms: Mapping[str, Arm],
    out: Path,
    *,
    progress: Progress | None = None,
    trusted: bool = False,
) -> None:
    """Score all arms on all suites; a killed run goes on where it stopped.

    `progress` gets what is asked, requests done and requests in all. `trusted` allows metrics that
    are Python functions of the recipe. Raises InputError for eval sets or models that are not
    there, Unavailable when a server does not answer; single requests that fail leave a score
    without a value.
    """
    unknown = sorted(set(arms) - set(ARMS))
    if unknown or "candidate" not in arms:
        raise InputError(f"arms are {', '.join(arms)}; they must be candidate and, beside it, "
                         "base or champion")  # fmt: skip
    prepared = [_prepare(suite, trusted) for suite in spec.suites]
    answers = Answers(out / "answers.jsonl")
    total = len(arms) * sum(len(one.items) for one in prepared)
    done = 0

    def step(question: Question) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(f"{question.arm}: {question.suite}", done, total)

    rows: list[dict[str, Any]] = []
    scores: list[Score] = []
    for name, arm in arms.items():
        questions = [
            _question(one.suite, item, name, spec.seed) for one in prepared for item in one.items
        ]
        given = ask(
            arm,
            questions,
            answers,
            concurrency=spec.concurrency,
            timeout_s=spec.timeout_s,
            progress=step,
        )
        rows += [row for row in given if "error" not in row]
        place = iter(given)
        for one in prepared:
            for item in one.items:
                scores += _scores(one, item, next(place), trusted)
    answers.keep(rows)
    write_rows(out / "scores.jsonl", scores)
    write_json(out / "evaluation.json", _facts(spec, arms, prepared))


def planned(spec: EvaluateSpec) -> dict[str, Planned]:
    """What each suite will hold, for `gate.foresee`: clusters count once."""
    plans = {}
    for suite in spec.suites:
        items = _items(suite)
        clusters = {item.cluster if item.cluster is not None else item.id for item in items}
        plans[suite.name] = Planned(len(clusters), _metrics(suite))
    return plans


def _metrics(suite: Suite) -> tuple[str, ...]:
    match suite:
        case TaskSuite():
            return suite.metrics
        case PerplexitySuite():
            return documents.METRICS
        case _:
            assert_never(suite)


def _prepare(suite: Suite, trusted: bool) -> _Prepared:
    items = _items(suite)
    failures: dict[str, str] = {}
    if isinstance(suite, TaskSuite):
        failures = task.control_failures(suite, items, trusted)
        for problem in failures.values():
            log.warning("suite %s: %s", suite.name, problem)
    return _Prepared(suite, items, failures)


def _items(suite: Suite) -> list[Item]:
    match suite:
        case TaskSuite():
            return task.items(suite)
        case PerplexitySuite():
            return documents.items(suite)
        case _:
            assert_never(suite)


def _question(suite: Suite, item: Item, arm: str, seed: int) -> Question:
    match suite:
        case TaskSuite():
            return task.question(suite, item, arm, seed)
        case PerplexitySuite():
            return documents.question(suite, item, arm, seed)
        case _:
            assert_never(suite)


def _scores(one: _Prepared, item: Item, answer: Mapping[str, Any], trusted: bool) -> list[Score]:
    match one.suite:
        case TaskSuite():
            return task.scores(one.suite, item, answer, one.failures, trusted)
        case PerplexitySuite():
            return documents.scores(one.suite, item, answer)
        case _:
            assert_never(one.suite)


def _facts(
    spec: EvaluateSpec, arms: Mapping[str, Arm], prepared: Sequence[_Prepared]
) -> dict[str, Any]:
    names = {metric for one in prepared for metric in _metrics(one.suite)}
    return {
        "seed": spec.seed,
        "sampling": {"temperature": 0, "top_p": 1, "seed": spec.seed},
        "arms": {name: {"model": arm.model, "digest": arm.digest} for name, arm in arms.items()},
        "suites": {
            one.suite.name: {"items": len(one.items), "control_failures": dict(one.failures)}
            for one in prepared
        },
        "signatures": {key: value for key, value in signatures().items() if key in names},
    }
