"""Answers without a server: the same as the server's, padded rightly, kept line by line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.services.serving.adapters import BASE, write_adapter
from trainyard.errors import InputError
from trainyard.evaluation import offline_model
from trainyard.evaluation.run import Arm, OfflineArm, evaluate
from trainyard.evaluation.scores import read_scores
from trainyard.gate import Verdict, decide
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.recipe.gates import GateSpec
from trainyard.serving.engines import start_local

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


def spec(folder: Path, count: int = 12, **suite) -> EvaluateSpec:
    rows = [
        {"prompt": "please " * (1 + 3 * i % 17) + f"help with order {i}", "completion": "yes"}
        for i in range(count)
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.jsonl").write_text('{"text": "my order is late"}\n{"text": "thank you"}\n')
    task = {"name": "t", "kind": "task", "data": str(folder / "eval.jsonl"), "max_tokens": 12,
            "metrics": ["exact_match", "stopped_by_eos", "completion_tokens"], **suite}  # fmt: skip
    corpus = {"name": "c", "kind": "perplexity", "data": str(folder / "corpus.jsonl")}
    return EvaluateSpec.model_validate({"suites": [task, corpus], "generation": "offline"})


def answers(out: Path) -> dict[tuple[str, str], dict]:
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return {(row["arm"], row["id"]): row for row in rows}


def test_offline_answers_are_those_of_the_server(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", seed=5)
    evaluate(
        spec(tmp_path),
        {"candidate": OfflineArm(BASE, "d" * 64, adapter)},
        tmp_path / "offline",
    )
    with start_local(
        "cpu", base=BASE, base_name="base", adapters={"tuned": adapter}, log=tmp_path / "log"
    ) as up:
        evaluate(spec(tmp_path), {"candidate": Arm(up.url, "tuned", "d" * 64)}, tmp_path / "served")
    mine, theirs = answers(tmp_path / "offline"), answers(tmp_path / "served")
    assert mine.keys() == theirs.keys()
    for key, row in theirs.items():
        for field in ("text", "finish_reason", "prompt_tokens", "completion_tokens", "tokens"):
            assert mine[key].get(field) == row.get(field), (key, field)
        assert mine[key].get("nll", 0) == pytest.approx(row.get("nll", 0), rel=1e-4)
    assert len({row.get("text") for row in mine.values()}) > 5


class RightPadded(offline_model.Model):
    """The classic fault: answers follow the padding instead of the prompt."""

    def padded(self, prompts):
        width = max(map(len, prompts))
        ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts])
        return ids, (torch.arange(width) < torch.tensor([[len(p)] for p in prompts])).long()


class Unmasked(offline_model.Model):
    """The other: padding on the right side, but attended to."""

    def padded(self, prompts):
        ids, mask = super().padded(prompts)
        return ids, torch.ones_like(mask)


@pytest.mark.parametrize("fault", [RightPadded, Unmasked])
def test_wrong_padding_is_found_before_any_answer(fault):
    model = fault(BASE, None, trust_remote_code=False)
    body = {"temperature": 0, "max_tokens": 8}
    questions = [
        {"index": i, "body": {**body, "messages": [{"role": "user", "content": "please " * n}]}}
        for i, n in enumerate((1, 9, 40))
    ]
    lines = list(offline_model.answers(model, questions))
    assert len(lines) == 1
    assert lines[0]["self_test"].startswith("left-padding self-test failed: in a batch, the answer")


def test_a_suite_whose_padding_is_wrong_is_invalid_by_that_name(tmp_path, monkeypatch):
    program = tmp_path / "sitecustomize.py"  # the fault in the process that really runs
    program.write_text(
        "import runpy, sys\n"
        "import trainyard.evaluation.offline_model as m\n"
        "from tests.services.evaluation.test_offline import RightPadded\n"
        "m.Model = RightPadded\n"
        "m.main()\n"
    )
    monkeypatch.setattr("trainyard.evaluation.offline.COMMAND", (sys.executable, str(program)))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    evaluate(spec(tmp_path), {"candidate": OfflineArm(BASE, "d" * 64)}, tmp_path / "out")
    claim = {"id": "em", "metric": "exact_match", "op": ">=", "value": 0.0}
    decision = decide([GateSpec.model_validate(claim)], read_scores(tmp_path / "out/scores.jsonl"))
    assert decision.verdict is Verdict.INVALID
    assert "left-padding self-test failed" in decision.reason


def test_offline_generation_killed_in_the_middle_goes_on_where_it_stopped(tmp_path):
    asked = spec(tmp_path, count=100, max_tokens=64)
    (tmp_path / "spec.json").write_text(asked.model_dump_json())
    program = (
        "import sys, pathlib\n"
        "from trainyard.evaluation.run import OfflineArm, evaluate\n"
        "from trainyard.recipe.evaluate import EvaluateSpec\n"
        "spec = EvaluateSpec.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "arm = OfflineArm(pathlib.Path(sys.argv[2]), 'd' * 64)\n"
        "evaluate(spec, {'candidate': arm}, pathlib.Path(sys.argv[3]))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(tmp_path / "spec.json"), str(BASE), str(out)]
    child = subprocess.Popen(command)
    kept = out / "answers.jsonl"
    while not kept.exists() or kept.read_text().count("\n") < 20:
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    lines = kept.read_text().splitlines(keepends=True)
    before = [line for line in lines if line.endswith("\n")]
    assert 20 <= len(before) < 102
    steps = []
    evaluate(
        asked,
        {"candidate": OfflineArm(BASE, "d" * 64)},
        out,
        progress=lambda *step: steps.append(step),
    )
    assert all(score.value is not None for score in read_scores(out / "scores.jsonl"))
    known = {json.loads(line)["key"]: json.loads(line) for line in before}
    for row in answers(out).values():  # what was kept was not asked again
        assert (
            row["key"] not in known
            or row["latency_ms" if "text" in row else "nll"]
            == (known[row["key"]]["latency_ms" if "text" in row else "nll"])
        )
    assert len(known) >= 20


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="could not answer offline"):
        evaluate(
            spec(tmp_path), {"candidate": OfflineArm(tmp_path / "no", "d" * 64)}, tmp_path / "out"
        )
