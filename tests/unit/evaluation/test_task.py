import json

import pytest

from trainyard.errors import InputError
from trainyard.evaluation import task
from trainyard.evaluation.samples import Item, read_items
from trainyard.recipe.evaluate import EvaluateSpec, TaskSuite


def suite(*metrics, **more):
    fields = {"name": "s", "kind": "task", "data": "x", "metrics": metrics, **more}
    return TaskSuite.model_validate(fields)


def value(metric, text, reference="ref", meta=None, trusted=False, **more):
    item = Item("i", ({"role": "user", "content": "q"},), reference, meta=meta or {})
    return task.value_of(suite(metric, **more), metric, item, text, trusted)


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("B", "B", 1),
        ("The answer is B.", "B", 1),
        ("A or B?", "B", 0),  # the first choice counts
        ("I'm sure: b)", "B", 1),  # the I of I'm is no choice
        ("42", "42", 1),
        ("17 + 25 = 42", "42", 1),
        ("1,200", "1200", 1),
        ("142", "42", 0),
        ("Paris.", "paris", 1),
        ("", "B", 0),
    ],
)
def test_capability_reads_the_choice_or_the_number(text, reference, right):
    assert value("capability", text, reference) == right


def test_a_pattern_is_searched_without_backtracking_forever():
    assert value("regex", "id: AB-12", meta={"pattern": r"[A-Z]{2}-\d{2}"}) == 1.0
    assert value("regex", "a" * 50_000 + "!", meta={"pattern": "(a+)+$"}) == 0.0


def test_a_pattern_that_is_none_is_an_error():
    with pytest.raises(InputError, match="pattern"):
        value("regex", "text", meta={"pattern": "("})


def test_an_answer_that_breaks_the_schema_scores_nothing(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"required": ["a"], "properties": {"a": {"type": "integer"}}}))
    assert value("json_fields", '{"a": 1}', '{"a": 1}', json_schema=str(path)) == 1.0
    assert value("json_fields", '{"a": "1", "b": 2}', '{"a": 1, "b": 2}',
                 json_schema=str(path)) == 0.0  # fmt: skip


@pytest.mark.parametrize("content", ["{", '{"type": "nothing"}'])
def test_a_schema_that_is_none_is_an_error(tmp_path, content):
    path = tmp_path / f"{len(content)}.json"
    path.write_text(content)
    with pytest.raises(InputError, match="no JSON Schema"):
        value("json_fields", "{}", "{}", json_schema=str(path))


def test_a_python_function_scores_in_trusted_runs_only(tmp_path):
    path = tmp_path / "score.py"
    path.write_text("def half(answer, reference, sample):\n    return len(answer) / 10\n")
    metric = f"python:{path}:half"
    assert value(metric, "12345", trusted=True) == 0.5
    with pytest.raises(InputError, match="not trusted"):
        value(metric, "12345")
    with pytest.raises(InputError, match=r"gave 1\.1"):
        value(metric, "1" * 11, trusted=True)


@pytest.mark.parametrize(
    ("code", "says"),
    [("def f(*a): return 1 / 0", "ZeroDivisionError"), ("g = 1", "has no function f")],
)
def test_a_function_that_fails_is_named(tmp_path, code, says):
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(InputError, match=says):
        value(f"python:{path}:f", "x", trusted=True)


@pytest.mark.parametrize(
    ("metric", "reference", "problem"),
    [
        ("exact_match", "fine", None),
        ("rougeL", "fine", None),
        ("bleu", "four words at least here", None),
        ("token_f1", "+++", "gives the reference itself 0"),
        ("json_fields", '{"a": 1}', None),
        ("contains", "", "gives the reference itself 0"),
    ],
)
def test_a_metric_proves_itself_on_reference_and_nonsense(metric, reference, problem):
    item = Item("i", ({"role": "user", "content": "q"},), reference)
    found = task.control_failures(suite(metric), [item], trusted=False)
    assert (metric in found) == (problem is not None)
    if problem:
        assert problem in found[metric]


def test_a_repeated_sample_is_kept_once(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    assert len(read_items(path)) == 1


def test_a_missing_cluster_is_named_with_its_line(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b", "user": 1}\n{"prompt": "c", "completion": "d"}\n'
    )
    with pytest.raises(InputError, match=r"line 2: the sample has no field user"):
        read_items(path, cluster="user")


@pytest.mark.parametrize(
    ("suites", "says"),
    [
        ([], "at least 1"),
        ([{"name": "a", "kind": "task", "data": "x", "metrics": ["acuracy"]}], "is not known"),
        ([{"name": "a", "kind": "task", "data": "x", "metrics": []}], "at least 1"),
        ([{"name": "a", "kind": "perplexity", "data": "x"}] * 2, "two suites are named a"),
        ([{"name": "a", "kind": "task", "data": "x", "metrics": ["bleu"], "fields": ["f"]}],
         "read by json_match"),
    ],
)  # fmt: skip
def test_an_evaluation_that_cannot_be_is_refused(suites, says):
    with pytest.raises(ValueError, match=says):
        EvaluateSpec.model_validate({"suites": suites})
