import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainyard.base_model import resolve
from trainyard.recipe.train import TrainSpec
from trainyard.training.job import TrainJob
from trainyard.training.launcher import launch

BASE = Path("recipes/quickstart/base")

# eight steps of a few seconds; small rows, so that starting the libraries takes most of the time
SETTINGS = {
    "rank": 4,
    "learning_rate": 2e-3,
    "warmup_steps": 1,
    "batch_size": 8,
    "device_batch_size": 4,
    "max_seq_len": 128,
    "max_steps": 8,
    "epochs": 8,
    "save_every": 3,
    "threads": 1,
}


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """Two passes are nine steps of eight, so that the fifth step begins the second pass."""
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    with file.open("w") as lines:
        for i in range(36):
            messages = [
                {"role": "user", "content": f"Order {i} of {i * 7 % 11} lamps. Which order?"},
                {"role": "assistant", "content": f'{{"order": {i}}}'},
            ]
            lines.write(json.dumps({"id": f"row{i}", "kind": "sft", "messages": messages}) + "\n")
    return file


@pytest.fixture(scope="session")
def make_job(rows, tmp_path_factory) -> Callable[..., TrainJob]:
    base = resolve(str(BASE), tmp_path_factory.mktemp("cache"))

    def make(**settings: object) -> TrainJob:
        return TrainJob(
            name="test",
            base_model=base.path,
            base_ref=base.ref,
            base_digest=base.digest,
            train=rows,
            data_digest="rows",
            spec=TrainSpec(**(SETTINGS | settings)),
        )

    return make


PLAIN = {
    "backend": "trl",
    "method": "lora",
    "precision": "fp32",
    "device_batch_size": 2,
    "max_steps": 4,
    "save_every": 2,
    "eval_every": 2,
}


@pytest.fixture(scope="session")
def plain_job(make_job, rows) -> Callable[..., TrainJob]:
    """LoRA in 32 bits, whose numbers other ways to compute the same are compared with."""

    def make(**settings: object) -> TrainJob:
        return make_job(**(PLAIN | settings)).model_copy(update={"val": rows})

    return make


@pytest.fixture(scope="session")
def plain(plain_job, tmp_path_factory):
    """One process, padded rows: folder and result."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, launch(plain_job(), folder)
