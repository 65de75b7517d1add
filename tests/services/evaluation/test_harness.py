"""lm-eval and inspect really run, where a Python that has them is named.

TRAINYARD_LM_EVAL_PYTHON and TRAINYARD_INSPECT_PYTHON name one each, in an environment of its own.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from trainyard.errors import InputError
from trainyard.evaluation import harness
from trainyard.evaluation.run import Arm, evaluate, planned
from trainyard.evaluation.scores import read_scores
from trainyard.gate import Verdict, decide
from trainyard.recipe.evaluate import EvaluateSpec, HarnessSuite
from trainyard.recipe.gates import GateSpec
from trainyard.serving.engines import start_local

BASE = Path("recipes/quickstart/base").resolve()
LM_TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
INSPECT_TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

@task
def sums():
    data = json_dataset({data!r}, FieldSpec(input="question", target="answer"))
    return Task(dataset=data, solver=[generate()], scorer=exact())
"""
GATE = GateSpec.model_validate({"id": "c", "metric": "capability", "op": ">=", "value": 0.5})


def suite(folder: Path, name: str, **more) -> HarnessSuite:
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(30)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(folder / "sums.jsonl")
    (folder / "sums.yaml").write_text(LM_TASK.format(data=data))
    (folder / "sums.py").write_text(INSPECT_TASK.format(data=data))
    own = {"lm_eval": {"tasks": ["sums"], "metric": "exact_match", "folder": str(folder)},
           "inspect": {"tasks": [str(folder / "sums.py")], "metric": "exact"}}[name]  # fmt: skip
    return HarnessSuite.model_validate(
        {"name": "sums", "kind": "harness", "harness": name, "limit": 30, "max_tokens": 16,
         **own, **more}
    )  # fmt: skip


def python(name: str) -> str:
    variable = f"TRAINYARD_{name.upper()}_PYTHON"
    if variable not in os.environ:
        pytest.skip(f"{variable} names no Python with {harness.PACKAGES[name]}")
    return os.environ[variable]


@pytest.mark.parametrize("name", ["lm_eval", "inspect"])
def test_a_harness_scores_a_served_model_and_its_controls_hold(tmp_path, name, openai_server, chat):
    one = suite(tmp_path, name, python=python(name))

    def right(path, body):
        number = int(str(body["messages"][-1]["content"]).split()[2])
        return 200, chat(str(2 * number), model=body["model"]), {}

    tuned = openai_server(right, ["tuned"])
    with start_local("cpu", base=BASE, base_name="b", adapters={}, log=tmp_path / "log") as up:
        arms = {"candidate": Arm(tuned.url, "tuned", "d" * 64), "base": Arm(up.url, "b", "b" * 64)}
        evaluate(EvaluateSpec(suites=(one,)), arms, tmp_path / "out")
        asked = len(tuned.seen)
        evaluate(EvaluateSpec(suites=(one,)), arms, tmp_path / "out")  # nothing is asked again
    assert asked == len(tuned.seen) == 30
    scores = read_scores(tmp_path / "out" / "scores.jsonl")
    means = {arm: [s.value for s in scores if s.arm == arm] for arm in arms}
    assert means == {"candidate": [1.0] * 30, "base": [0.0] * 30}
    assert {score.slice for score in scores} == {("task=sums",)}
    assert decide([GATE], scores).verdict is Verdict.PASS


def test_a_harness_that_is_not_there_is_said_with_the_line_to_type(tmp_path):
    one = suite(tmp_path, "lm_eval", python=sys.executable)
    with pytest.raises(InputError, match=r"needs lm_eval.*-m pip install 'lm-eval\[api\]==0"):
        harness.check(one)
    with pytest.raises(InputError, match="does not run"):
        harness.check(suite(tmp_path, "inspect", python=str(tmp_path / "no")))


FAKE = """
import json, pathlib, sys
if "-c" in sys.argv:
    sys.exit(0)
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "m"
out.mkdir(parents=True)
row = {{"doc_id": 0, "target": "4", "filter": "none", "metrics": ["exact_match"],
       "arguments": {{"gen_args_0": {{"arg_0": [json.dumps([{{"content": "2 + 2"}}])]}}}},
       "exact_match": {value}}}
(out / "samples_sums_2026-11-21.jsonl").write_text(json.dumps(row))
"""


def a_harness_that_says(folder: Path, program: str) -> str:
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\n{program}")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1.0", "gives a broken answer 1.0 instead of 0"),  # everything is right to it
        ("0.0", "gives the target 0.0 instead of 1"),
        ("None", "gives a broken answer no score of exact_match"),
        ("float('nan')", "not a number from 0 to 1"),
    ],
)
def test_a_harness_that_fails_a_control_makes_the_suite_invalid(tmp_path, value, says):
    program = a_harness_that_says(tmp_path, FAKE.format(value=value))
    one = suite(tmp_path, "lm_eval", python=program)
    arm = Arm("http://127.0.0.1:9", "m", "d" * 64)
    decision = decide([GATE], harness.scores(one, {"candidate": arm}, tmp_path / "kept"))
    assert decision.verdict is Verdict.INVALID
    assert says in decision.reason


def test_a_harness_that_ends_badly_is_one_sentence(tmp_path):
    program = a_harness_that_says(
        tmp_path, "import sys\nif '-c' in sys.argv: sys.exit(0)\nsys.exit('no task sums')\n"
    )
    one = suite(tmp_path, "lm_eval", python=program)
    with pytest.raises(InputError, match="lm_eval ended with: no task sums"):
        harness.scores(one, {}, tmp_path / "kept")


def test_the_plan_counts_its_samples(tmp_path):
    assert planned(EvaluateSpec(suites=(suite(tmp_path, "inspect"),)))["sums"].n == 30
