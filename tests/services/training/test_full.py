"""Every weight is trained, on a machine that vanishes, and the model is served beside its base.

Two threads: what another machine ends with is equal byte by byte at any fixed number of them.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.services.storage.servers import ACCESS, SECRET, moto
from trainyard import storage
from trainyard.evaluation.scores import read_scores
from trainyard.files import read_json
from trainyard.parity import record as parity
from trainyard.recipe import read_recipe
from trainyard.recipe.register import S3Archive
from trainyard.release import evaluation
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.training.job import TrainJob
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch
from trainyard.training.mirror import Mirror

torch.set_num_threads(1)
BASE = Path("recipes/quickstart/base")
RECIPE = "recipes/quickstart.yaml"
DEADLINE_S = 300


class MachineGone(Exception):
    pass


@pytest.fixture(scope="module")
def job(plain_job) -> TrainJob:
    return plain_job(method="full", learning_rate=5e-4, max_steps=8, threads=2)


@pytest.fixture(scope="module")
def full(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return folder, launch(job, folder)


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setenv("ARCHIVE_KEY", ACCESS)
    monkeypatch.setenv("ARCHIVE_SECRET", SECRET)
    with moto() as url:
        asked = {
            "kind": "s3",
            "url": "s3://mirrored/team",
            "endpoint": url,
            "access_key": "env:ARCHIVE_KEY",
            "secret_key": "env:ARCHIVE_SECRET",
            "create_bucket": True,
        }
        yield storage.open_store(S3Archive.model_validate(asked), tmp_path)


def test_every_weight_is_trained_and_kept_in_the_type_of_the_base(full):
    folder, result = full
    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert losses[-1] < losses[0] - 0.2
    base, trained = (load_file(f / "model.safetensors") for f in (BASE, result.adapter))
    assert {name: t.dtype for name, t in base.items()} == {n: t.dtype for n, t in trained.items()}
    assert not [name for name, t in base.items() if torch.equal(t, trained[name])]
    assert str(folder) not in (result.adapter / "config.json").read_text()
    assert result.details["trained_parameters"] >= sum(t.numel() for t in base.values())


def test_another_machine_goes_on_from_the_copies_in_the_archive(job, full, store, tmp_path):
    lost, other = tmp_path / "lost", tmp_path / "other"

    def vanish(line: dict) -> None:
        if line["step"] < 3:
            return
        os.kill(read_json(lost / "process.json")["pid"], signal.SIGKILL)
        until = time.monotonic() + DEADLINE_S
        while not storage.list_checkpoints(store, "run") and time.monotonic() < until:
            time.sleep(0.1)
        shutil.rmtree(lost)
        raise MachineGone

    with pytest.raises(MachineGone):
        launch(job, lost, progress=vanish, mirror=Mirror(store, "run"))
    result = launch(job, other, mirror=Mirror(store, "run"))
    assert result.attempts[0]["from_step"] >= 2
    assert result.digest == full[1].digest
    assert result.details["threads"] == full[1].details["threads"] == 2
    assert result.tokens == full[1].tokens
    assert result.details["best_step"] == full[1].details["best_step"]
    assert storage.list_checkpoints(store, "run") == []


def test_a_whole_model_is_served_beside_its_base_and_is_what_was_trained(full, tmp_path):
    folder, result = full
    suite = {
        "name": "tickets",
        "kind": "task",
        "data": "recipes/quickstart/eval.jsonl",
        "limit": 4,
        "metrics": ["exact_match"],
        "max_tokens": 4,
    }
    overrides = {
        "train.method": "full",
        "train.backend": "trl",
        "evaluate.suites": [suite],
        "evaluate.max_truncated": 1.0,
        "evaluate.parity.probes": 2,
        "gates": {"exact_match": ">= 0"},
    }
    recipe = read_recipe(Path(RECIPE), overrides)
    job = Job(recipe=recipe, recipe_path=RECIPE, run_id="r", home=tmp_path)
    trained = Trained(result=result, folder=folder, skipped=False)
    found = evaluation.run(job, trained, None, lambda *_: None)
    assert {score.arm for score in read_scores(found.folder / "scores.jsonl")} == {
        "candidate",
        "base",
    }
    record = parity.read(found.folder)
    assert [(step.name, step.verdict) for step in record.steps] == [
        ("template", "ok"),
        ("adapter", "ok"),
        ("precision", "ok"),
        ("server", "ok"),
    ]
