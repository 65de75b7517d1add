"""A further look: the answers so far are taken over, and only new items are asked."""

import json
from pathlib import Path
from types import SimpleNamespace

from trainyard.evaluation.run import Arm, evaluate
from trainyard.evaluation.scores import read_scores
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.release.job import Job


def test_only_new_items_are_asked(tmp_path, openai_server, chat):
    server = openai_server(lambda path, body: (200, chat("yes"), {}), ["m"])
    rows = [{"prompt": f"ask {i}", "completion": "yes"} for i in range(40)]
    data = tmp_path / "eval.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {"name": "t", "kind": "task", "data": str(data), "metrics": ["accuracy"], "limit": 20,
             "more": [40]}  # fmt: skip
    spec = EvaluateSpec.model_validate({"suites": [suite]})
    job = Job.model_construct(recipe=SimpleNamespace(evaluate=spec), looks=({"t": 40},))
    arms = {"candidate": Arm(server.url, "m", "c")}

    evaluate(spec, arms, tmp_path / "first")
    assert len(server.seen) == 20
    (tmp_path / "second").mkdir()
    for name in Path(tmp_path / "first").glob("answers.jsonl"):
        (tmp_path / "second" / name.name).write_bytes(name.read_bytes())
    evaluate(job.evaluate, arms, tmp_path / "second")
    asked = [one["messages"][-1]["content"] for one in server.seen]
    assert len(asked) == len(set(asked)) == 40
    assert len(read_scores(tmp_path / "second" / "scores.jsonl")) == 40
