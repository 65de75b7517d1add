"""The stage `evaluate` as a release runs it, without a training: scores and parity record."""

from pathlib import Path

from tests.services.parity.test_parity import trained_folder
from trainyard.evaluation.scores import read_scores
from trainyard.files import digest_tree
from trainyard.parity.record import read
from trainyard.recipe import read_recipe
from trainyard.release import evaluation, gate
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.training.job import TrainResult

RECIPE = "recipes/quickstart.yaml"
TASK = {"name": "tickets", "kind": "task", "data": "recipes/quickstart/eval.jsonl", "limit": 60,
        "metrics": ["completion_tokens"], "max_tokens": 4}  # fmt: skip


def test_an_offline_evaluation_starts_the_engine_for_the_parity_check_alone(tmp_path):
    recipe = read_recipe(
        Path(RECIPE),
        {"evaluate.suites": [TASK], "evaluate.generation": "offline", "evaluate.max_truncated": 1.0,
         "evaluate.parity.probes": 2, "gates": {"completion_tokens": "<= 5"}},
    )  # fmt: skip
    folder = trained_folder(tmp_path / "trained")
    result = TrainResult(
        adapter=folder / "adapter", steps=1, loss=1.0, tokens=1, seconds=1.0, backend="trl",
        digest=digest_tree(folder / "adapter"), attempts=[],
    )  # fmt: skip
    job = Job(recipe=recipe, recipe_path=RECIPE, run_id="r", home=tmp_path / "home")
    trained = Trained(result=result, folder=folder, skipped=False)
    found = evaluation.run(job, trained, None, lambda *_: None)
    scores = read_scores(found.folder / "scores.jsonl")
    assert {(score.arm, score.value) for score in scores} == {("candidate", 4.0), ("base", 4.0)}
    parity = read(found.folder)
    assert parity is not None
    assert [step.verdict for step in parity.steps] == ["ok"] * 4
    assert len(parity.probes) == 2
    log = (found.folder.parent / "engine.log").read_text()
    assert "ready http" in log
    assert (job.folder / "evaluation" / "parity.json").exists()
    decision = gate.run(job, found, result.digest, None)
    assert [(one.id, one.verdict) for one in decision.gates] == [
        ("parity", "PASS"),
        ("completion_tokens", decision.gates[1].verdict),
    ]
    assert evaluation.run(job, trained, None, lambda *_: None).skipped
