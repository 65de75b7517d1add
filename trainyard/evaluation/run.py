"""Ask every arm everything, score every answer, leave `answers.jsonl` and `scores.jsonl`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, assert_never

from trainyard.errors import InputError
from trainyard.evaluation import documents, harness, pairwise, rubric, safety, task, twins
from trainyard.evaluation.asking import Answers, Arm, Question
from trainyard.evaluation.metrics import signatures
from trainyard.evaluation.offline import OfflineArm, ask_arm
from trainyard.evaluation.samples import Item
from trainyard.evaluation.scores import (
    ARMS,
    GUARD_RECALL,
    Judgement,
    Score,
    guard_suite,
    write_rows,
)
from trainyard.files import write_json
from trainyard.gate.foresight import PROBES, Planned
from trainyard.recipe.evaluate import (
    EvaluateSpec,
    HarnessSuite,
    PairwiseSuite,
    PerplexitySuite,
    RubricSuite,
    SafetySuite,
    Suite,
    TaskSuite,
    TwinsSuite,
)

log = logging.getLogger(__name__)

__all__ = ["Arm", "OfflineArm", "evaluate", "planned", "probes"]

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Prepared:
    suite: Suite
    items: Sequence[Item]
    failures: Mapping[str, str]
    """Metric -> why its controls failed."""
    arms: Sequence[str]
    """The arms that are asked."""


def evaluate(
    spec: EvaluateSpec,
    arms: Mapping[str, Arm | OfflineArm],
    out: Path,
    *,
    progress: Progress | None = None,
    trusted: bool = False,
    judge_cache: Path | None = None,
    today: date | None = None,
) -> None:
    """Score all arms on all suites; a killed run goes on where it stopped.

    `progress` gets what is asked, requests done and requests in all. `trusted` allows metrics that
    are Python functions of the recipe. `judge_cache` keeps judgements between runs. `today` is the
    day by which a judge's calibration expires. Raises InputError for eval sets or models that are
    not there, Unavailable when a server does not answer; single requests that fail leave a score
    without a value.
    """
    unknown = sorted(set(arms) - set(ARMS))
    if unknown or "candidate" not in arms:
        raise InputError(
            f"arms are {', '.join(arms)}; they must be candidate and, beside it, base or champion"
        )
    prepared = [_prepare(suite, arms, trusted) for suite in spec.suites]
    answers = Answers(out / "answers.jsonl")
    rows = _ask_all(spec, arms, prepared, answers, progress)
    scores = [
        score
        for one in prepared
        for name in one.arms
        for item in one.items
        for score in _scores(one, item, rows[one.suite.name, item.id, name], trusted)
    ]
    for one in prepared:
        if isinstance(one.suite, SafetySuite):
            verdicts = out / "guard.jsonl"
            scores += safety.scores(one.suite, one.items, one.arms, rows, spec, verdicts)
        if isinstance(one.suite, TwinsSuite):
            scores += twins.scores(one.suite, one.items, one.arms, rows)
        if isinstance(one.suite, HarnessSuite):
            served = {name: arm for name, arm in arms.items() if isinstance(arm, Arm)}
            scores += harness.scores(one.suite, served, out / "harness")
    answers.keep(row for row in rows.values() if "error" not in row)
    facts = _facts(spec, arms, prepared)
    judgements, judges = _judge(
        spec,
        prepared,
        rows,
        judge_cache or out / "judge-cache",
        today or datetime.now(UTC).date(),
    )
    if judges or judgements:
        facts["judges"] = judges
        write_rows(out / "judgements.jsonl", judgements)
    write_json(out / "evaluation.json", facts)
    write_rows(out / "scores.jsonl", scores)


def _judge(
    spec: EvaluateSpec,
    prepared: Sequence[_Prepared],
    rows: Mapping[tuple[str, str, str], Row],
    cache: Path,
    today: date,
) -> tuple[list[Judgement], dict[str, Any]]:
    """What judges say of pairs and of answers alone, and the facts about them by suite."""
    duels = [(p.suite, p.items) for p in prepared if isinstance(p.suite, PairwiseSuite)]
    alone = [(p.suite, p.items) for p in prepared if isinstance(p.suite, RubricSuite)]
    compared, about_pairs = pairwise.judge_all(duels, rows, spec, cache, today)
    graded, about_grades = rubric.grade_all(alone, rows, spec, cache, today)
    return [*compared, *graded], about_pairs | about_grades


def planned(spec: EvaluateSpec) -> dict[str, Planned]:
    """What each suite will hold, for `gate.foresee`: clusters count once."""
    plans = {PROBES: Planned(spec.parity.probes, ())}
    for suite in spec.suites:
        if isinstance(suite, HarnessSuite):
            most = (suite.limit or 0) * len(suite.tasks)
            plans[suite.name] = Planned(most, _metrics(suite))
            continue
        clusters = {item.cluster if item.cluster is not None else item.id for item in _items(suite)}
        plans[suite.name] = Planned(len(clusters), _metrics(suite), _most(suite))
        if isinstance(suite, SafetySuite) and suite.guard.labels:
            examples = len(safety.read_labels(suite))
            plans[guard_suite(suite.name)] = Planned(examples, (GUARD_RECALL,))
    return plans


def probes(spec: EvaluateSpec) -> list[Messages]:
    """Questions for the parity check, drawn evenly from the chat suites, the same every time."""
    asked = [item.messages for suite in spec.suites for item in _items(suite) if item.messages]
    if not asked:
        asked = [({"role": "user", "content": "hello"},)]
    count = min(spec.parity.probes, len(asked))
    return [asked[i * len(asked) // count] for i in range(count)]


def _most(suite: Suite) -> int | None:
    """Independent items when all further looks are taken; None without any."""
    if not suite.more:
        return None
    items = _items(suite.model_copy(update={"limit": suite.more[-1]}))
    return len({item.cluster if item.cluster is not None else item.id for item in items})


def _ask_all(
    spec: EvaluateSpec,
    arms: Mapping[str, Arm | OfflineArm],
    prepared: Sequence[_Prepared],
    answers: Answers,
    progress: Progress | None,
) -> dict[tuple[str, str, str], Row]:
    """Answer rows by suite, item and arm; a request that failed has a row with `error`."""
    total = sum(len(one.items) * len(one.arms) for one in prepared)
    done = 0

    def step(question: Question) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(f"{question.arm}: {question.suite}", done, total)

    rows: dict[tuple[str, str, str], Row] = {}
    for name, arm in arms.items():
        questions = [
            _question(one.suite, item, name, spec.seed)
            for one in prepared
            if name in one.arms
            for item in one.items
        ]
        if not questions:
            continue
        given = ask_arm(
            arm,
            questions,
            answers,
            concurrency=spec.concurrency,
            timeout_s=spec.timeout_s,
            progress=step,
        )
        for question, row in zip(questions, given, strict=True):
            rows[question.suite, question.id, name] = row
    return rows


def _metrics(suite: Suite) -> tuple[str, ...]:
    match suite:
        case TaskSuite():
            return suite.metrics
        case PerplexitySuite():
            return documents.METRICS
        case PairwiseSuite():
            return pairwise.METRICS
        case RubricSuite():
            return rubric.METRICS
        case SafetySuite():
            return (suite.measure,)
        case TwinsSuite():
            return (twins.METRIC,)
        case HarnessSuite():
            return (harness.METRIC,)
        case _:
            assert_never(suite)


def _prepare(suite: Suite, arms: Mapping[str, Arm | OfflineArm], trusted: bool) -> _Prepared:
    items = _items(suite)
    asked: Sequence[str] = list(arms)
    failures: dict[str, str] = {}
    if isinstance(suite, TaskSuite):
        failures = task.control_failures(suite, items, trusted)
    if isinstance(suite, PerplexitySuite):
        failures = documents.control_failures(suite, items)
    for problem in failures.values():
        log.warning("suite %s: %s", suite.name, problem)
    if isinstance(suite, PairwiseSuite):
        asked = pairwise.asked_arms(suite, asked)
    if isinstance(suite, RubricSuite):
        asked = ["candidate"]
    return _Prepared(suite, items, failures, asked)


def _items(suite: Suite) -> list[Item]:
    match suite:
        case TaskSuite():
            return task.items(suite)
        case PerplexitySuite():
            return documents.items(suite)
        case PairwiseSuite():
            return pairwise.items(suite)
        case RubricSuite():
            return rubric.items(suite)
        case SafetySuite():
            return safety.items(suite)
        case TwinsSuite():
            return twins.items(suite)
        case HarnessSuite():
            return []
        case _:
            assert_never(suite)


def _question(suite: Suite, item: Item, arm: str, seed: int) -> Question:
    match suite:
        case TaskSuite():
            return task.question(suite, item, arm, seed)
        case PerplexitySuite():
            return documents.question(suite, item, arm, seed)
        case PairwiseSuite():
            return pairwise.question(suite, item, arm, seed)
        case RubricSuite():
            return rubric.question(suite, item, arm, seed)
        case SafetySuite():
            return safety.question(suite, item, arm, seed)
        case TwinsSuite():
            return twins.question(suite, item, arm, seed)
        case HarnessSuite():
            raise AssertionError("a harness asks for itself")
        case _:
            assert_never(suite)


def _scores(one: _Prepared, item: Item, answer: Mapping[str, Any], trusted: bool) -> list[Score]:
    match one.suite:
        case TaskSuite():
            return task.scores(one.suite, item, answer, one.failures, trusted)
        case PerplexitySuite():
            return documents.scores(one.suite, item, answer, one.failures)
        case PairwiseSuite() | RubricSuite() | SafetySuite() | TwinsSuite() | HarnessSuite():
            return []
        case _:
            assert_never(one.suite)


def _facts(
    spec: EvaluateSpec, arms: Mapping[str, Arm | OfflineArm], prepared: Sequence[_Prepared]
) -> dict[str, Any]:
    names = {metric for one in prepared for metric in _metrics(one.suite)}
    return {
        "seed": spec.seed,
        "sampling": {"temperature": 0, "top_p": 1, "seed": spec.seed},
        "arms": {name: {"model": arm.model, "digest": arm.digest} for name, arm in arms.items()},
        "suites": {
            one.suite.name: {
                "items": len(one.items),
                "arms": list(one.arms),
                "control_failures": dict(one.failures),
            }
            for one in prepared
        },
        "signatures": {key: value for key, value in signatures().items() if key in names}
        if names & {"bleu", "chrf"}
        else {},
    }
