"""A judge that grades answers alone, as a real HTTP server."""

import json
import re
from datetime import date

import pytest

from trainyard.evaluation.judge.attacks import PROBES
from trainyard.evaluation.run import Arm, evaluate
from trainyard.evaluation.scores import read_judgements
from trainyard.gate import Verdict, decide
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.recipe.gates import GateSpec

TODAY = date(2026, 11, 20)
N = 60
JUDGE = "judge-2026-01-01"
GOOD = {probe.good for probe in PROBES}
CLAIM = GateSpec.model_validate({"id": "r", "metric": "rubric_score", "op": ">=", "value": 0.6})


def answer_of(body):
    text = body["messages"][-1]["content"]
    (found,) = re.findall(r"^BEGIN answer (\w+)\n(.*)\nEND answer \1$", text, re.MULTILINE)
    return json.loads(found[1])


def graded(one, other):
    return json.dumps({"analysis": "read", "criteria": {"correctness": one, "helpfulness": other}})


def fair(chat):
    def reply(path, body):
        text = answer_of(body)
        grade = 5 if text in GOOD or text.startswith("right") else 3 if "fair" in text else 1
        return 200, chat(graded(grade, grade), model=body["model"]), {}

    return reply


def human_grades(count=120):
    kinds = [("right", 5), ("fair", 3), ("poor", 1)]
    return [
        {"prompt": f"old {i}", "answer": f"{kinds[i % 3][0]} {i}", "grade": kinds[i % 3][1],
         "labelled_at": "2026-11-01"}
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def world(tmp_path, openai_server, chat):
    def run(judge=None, grades=None, **suite):
        def answers(path, body):
            number = int(body["messages"][-1]["content"].split()[1])
            kind = "right" if number % 10 else "poor"
            return 200, chat(f"{kind} answer number {number}", model="tuned"), {}

        rows = [{"prompt": f"ask {i}", "completion": f"right {i}"} for i in range(N)]
        labels = human_grades() if grades is None else grades
        for name, content in (("eval", rows), ("grades", labels)):
            text = "".join(json.dumps(row) + "\n" for row in content)
            (tmp_path / f"{name}.jsonl").write_text(text)
        server = openai_server(judge or fair(chat), [JUDGE])
        juror = {"base_url": server.url, "model": JUDGE, "usd_per_million_output": 10.0}
        spec = EvaluateSpec.model_validate(
            {"suites": [{"name": "essay", "kind": "rubric", "data": str(tmp_path / "eval.jsonl"),
                         "jurors": [juror], "calibration": str(tmp_path / "grades.jsonl"),
                         **suite}], "concurrency": 4, "timeout_s": 60}
        )  # fmt: skip
        models = openai_server(answers, ["tuned"])
        evaluate(spec, {"candidate": Arm(models.url, "tuned", "c")}, tmp_path, today=TODAY,
                 judge_cache=tmp_path / "cache")  # fmt: skip
        run.facts = json.loads((tmp_path / "evaluation.json").read_text())["judges"]["essay"]
        run.seen = server.seen
        return decide([CLAIM], [], read_judgements(tmp_path / "judgements.jsonl")).gates[0]

    return run


def test_a_calibrated_judge_grades_each_answer_alone(world):
    found = world()
    assert found.verdict is Verdict.PASS
    assert (found.estimate, found.n) == (pytest.approx(0.9), N)
    about = world.facts["jurors"][JUDGE]
    assert about["calibration"]["calibrated"]
    assert about["calibration"]["kappa"] == 1.0
    assert about["bias"]["mean_grade"] == pytest.approx(0.9)
    told = json.dumps([one["messages"] for one in world.seen])
    assert "tuned" not in told
    assert "0.6" not in told


def test_a_judge_that_grades_everything_well_is_not_calibrated(world, chat):
    found = world(lambda path, body: (200, chat(graded(5, 4), model=JUDGE), {}))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "judge_uncalibrated" in found.reason
    problems = " ".join(world.facts["jurors"][JUDGE]["calibration"]["problems"])
    assert "kappa" in problems
    assert "injected answers succeed" in problems


@pytest.mark.parametrize(
    "text",
    [graded(6, 5), graded(4.5, 5), graded(True, 5), '{"criteria": {"correctness": 5}}', "<html>"],
)
def test_a_grade_outside_the_scale_is_invalid_and_the_worst(world, chat, text):
    steady = fair(chat)

    def reply(path, body):
        if answer_of(body).endswith(" 3"):
            return 200, chat(text, model=JUDGE), {}
        return steady(path, body)

    found = world(reply)
    assert (found.verdict, found.invalid) == (Verdict.PASS, 1)
    assert found.estimate == pytest.approx(0.9 - 1 / N)


def test_no_more_is_spent_than_the_cap_even_at_once(world):
    found = world(max_cost_usd=0.001)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert not world.seen
    assert "budget" in " ".join(world.facts["jurors"][JUDGE]["calibration"]["problems"])


@pytest.mark.parametrize("row", [{"prompt": "p"}, {**human_grades(1)[0], "grade": 6}])
def test_a_row_that_is_no_grade_is_named(world, row):
    with pytest.raises(ValueError, match=r"grades\.jsonl:1 "):
        world(grades=[row])
