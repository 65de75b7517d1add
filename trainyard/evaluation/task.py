"""Task suites: every metric of every answer, after the metrics proved themselves on controls."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jsonschema
import re2

from trainyard.errors import InputError
from trainyard.evaluation import constraints, metrics
from trainyard.evaluation.asking import Question
from trainyard.evaluation.chat import chat_question
from trainyard.evaluation.samples import Item, read_items, require
from trainyard.evaluation.scores import Score
from trainyard.evaluation.words import normal, words
from trainyard.recipe.evaluate import PYTHON_METRIC, TaskSuite

SERVED = frozenset({"latency_ms", "completion_tokens", "stopped_by_eos"})
"""Metrics of how an answer was served; they need no reference and no control."""
BROKEN = "\ue000"
"""The broken stub's answer: one private-use character, which no reference holds."""


def items(suite: TaskSuite) -> list[Item]:
    found = read_items(suite.data, limit=suite.limit, cluster=suite.cluster, slices=suite.slices)
    compared = set(suite.metrics) - SERVED - {"constraints", "regex"}
    require(found, suite.data, reference=bool(compared))
    return found


def question(suite: TaskSuite, item: Item, arm: str, seed: int) -> Question:
    return chat_question(
        suite.name, item, arm, max_tokens=suite.max_tokens, seed=seed, stop=suite.stop
    )


def control_failures(suite: TaskSuite, samples: Sequence[Item], trusted: bool) -> dict[str, str]:
    """Metric -> why it cannot be trusted on this suite.

    The reference itself must score full marks, and a broken answer none.
    """
    failures = {}
    for metric in suite.metrics:
        if metric in SERVED:
            continue
        full = 100.0 if metric in ("bleu", "chrf") else 1.0
        for item in samples:
            problem = _control(suite, metric, item, full, trusted)
            if problem is not None:
                failures[metric] = f"control failed: {problem} (sample {item.id})"
                break
    return failures


def _control(suite: TaskSuite, metric: str, item: Item, full: float, trusted: bool) -> str | None:
    if item.reference is not None:
        best = value_of(suite, metric, item, item.reference, trusted)
        if abs(best - full) > 1e-6:
            return f"{metric} gives the reference itself {best:.4g} instead of {full:g}"
    broken = "" if metric == "constraints" else BROKEN  # "no commas" holds for any character
    worst = value_of(suite, metric, item, broken, trusted)
    if worst != 0:
        return f"{metric} gives a broken answer {worst:.4g} instead of 0"
    return None


def scores(
    suite: TaskSuite,
    item: Item,
    answer: Mapping[str, Any],
    failures: Mapping[str, str],
    trusted: bool,
) -> list[Score]:
    """One score per metric; without an answer, or after a failed control, one without a value."""
    return [
        _score(suite, metric, item, answer, failures.get(metric), trusted)
        for metric in suite.metrics
    ]


def _score(
    suite: TaskSuite,
    metric: str,
    item: Item,
    answer: Mapping[str, Any],
    failure: str | None,
    trusted: bool,
) -> Score:
    error = failure or answer.get("error")
    value: float | None = None
    stats: tuple[float, ...] = ()
    if error is None:
        if metric in SERVED:
            value, error = _served(metric, answer)
        else:
            value, stats = measured(suite, metric, item, answer["text"], trusted)
    labels = metric == "macro_f1" and error is None
    return Score(
        id=item.id,
        suite=suite.name,
        metric=metric,
        arm=answer["arm"],
        value=value,
        cluster=item.cluster,
        slice=item.slices,
        error=error,
        stats=stats,
        expected=normal(item.reference or "") if labels else None,
        predicted=normal(answer["text"]) if labels else None,
        truncated=answer.get("finish_reason") == "length",
    )


def _served(metric: str, answer: Mapping[str, Any]) -> tuple[float | None, str | None]:
    if metric == "stopped_by_eos":
        return float(answer.get("finish_reason") != "length"), None
    value = answer.get(metric)
    if value is None:
        return None, f"the server's reply has no {metric}"
    return float(value), None


def value_of(suite: TaskSuite, metric: str, item: Item, text: str, trusted: bool) -> float:
    return measured(suite, metric, item, text, trusted)[0]


def measured(
    suite: TaskSuite, metric: str, item: Item, text: str, trusted: bool
) -> tuple[float, tuple[float, ...]]:
    """The value of one metric and, for corpus metrics, its statistics."""
    reference = item.reference or ""
    if metric in ("bleu", "chrf"):
        compute = metrics.bleu_stats if metric == "bleu" else metrics.chrf_stats
        return compute(text, reference)
    if metric in get_args(metrics.RougeVariant):
        return _rouge(text, reference, metric), ()
    if metric in ("json_match", "json_fields"):
        return _json(suite, metric, text, reference), ()
    if metric == "constraints":
        return constraints.satisfied(text, item.meta.get("constraints") or ()), ()
    if metric == "regex":
        return float(bool(_pattern(item).search(text))), ()
    if metric in _SIMPLE:
        return _SIMPLE[metric](text, reference), ()
    return _python(metric, trusted)(text, reference, item), ()


_SIMPLE: dict[str, Callable[[str, str], float]] = {
    "exact_match": metrics.exact_match,
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.accuracy,
    "micro_f1": metrics.accuracy,
    "contains": metrics.contains,
    "capability": metrics.capability,
    "token_f1": metrics.token_f1,
}


def _rouge(text: str, reference: str, variant: str) -> float:
    if not words(reference):
        raise InputError(f"reference {reference[:60]!r} has no words, so ROUGE cannot score it")
    return metrics.rouge(text, reference, variant)  # type: ignore[arg-type]


def _json(suite: TaskSuite, metric: str, text: str, reference: str) -> float:
    if suite.json_schema is not None:
        validator = _schema(suite.json_schema)
        if not validator.is_valid(metrics.parsed(text)):
            return 0.0
    compute = metrics.json_match if metric == "json_match" else metrics.json_fields
    return compute(text, reference, suite.fields)


@cache
def _schema(path: str) -> Any:
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path} is no JSON Schema that can be used: {first}") from error
    return jsonschema.Draft202012Validator(schema)


def _pattern(item: Item) -> Any:
    text = item.meta.get("pattern", item.reference)
    if not isinstance(text, str) or not text:
        raise InputError(
            f"sample {item.id} has no pattern; give it a field `pattern` or a reference"
        )
    try:
        return re2.compile(text)
    except re2.error as error:
        raise InputError(f"sample {item.id} has the pattern {text!r}: {error}") from error


def _python(name: str, trusted: bool) -> Callable[[str, str, Item], float]:
    if not trusted:
        raise InputError(
            f"metric {name} runs code that the recipe names, and this run is not trusted to; "
            "start it from a trusted branch"
        )
    function = _function(name)

    def call(text: str, reference: str, item: Item) -> float:
        sample = {"messages": list(item.messages), "reference": reference, **item.meta}
        try:
            value = float(function(text, reference, sample))
        # the function is the user's: whatever it raises is a fault of the recipe, with its name
        except Exception as error:
            raise InputError(f"{name} failed on sample {item.id}: {error!r}") from error
        if not 0 <= value <= 1:
            raise InputError(f"{name} gave {value!r} for sample {item.id}; it must be in [0, 1]")
        return value

    return call


@cache
def _function(name: str) -> Callable[..., Any]:
    found = PYTHON_METRIC.fullmatch(name)
    assert found is not None
    path = Path(found["file"])
    spec = importlib.util.spec_from_file_location(f"trainyard_metric_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path} is not there; metric {name} names it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, found["function"], None)
    if not callable(function):
        raise InputError(f"{path} has no function {found['function']}")
    return function  # type: ignore[no-any-return]
