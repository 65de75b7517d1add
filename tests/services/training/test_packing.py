"""Rows laid end to end are trained as if each were alone, or nothing is trained."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from trainyard.errors import TrainingFailed
from trainyard.training import selfcheck
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch
from trainyard.training.objectives import Pack
from trainyard.training.rows import IGNORED

torch.set_num_threads(1)
BASE = Path("recipes/quickstart/base")


class Bare:
    """As much of a trainer as the self-check asks."""

    def __init__(self, attention, collator):
        self.data_collator = collator
        self.model = AutoModelForCausalLM.from_pretrained(
            BASE, dtype=torch.float32, attn_implementation=attention
        )

    def units(self, batch):
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def loss_of(self, batch, units):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits = self.model(**inputs, use_cache=False).logits
        found = cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum")
        return found / units


class Leaky(Pack):
    def __call__(self, rows):
        batch = super().__call__(rows)
        return batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_attention_keeps_rows_apart_or_is_refused(attention):
    rows = [
        {"input_ids": [i + 5, *range(9, 30)], "labels": [i + 5, *range(9, 30)]} for i in range(4)
    ]
    found = selfcheck.packing(Bare(attention, Pack(0, 1)), rows)
    assert found["attention"] == attention
    assert found["packed"] == pytest.approx(found["alone"], rel=1e-4)
    with pytest.raises(selfcheck.Failed, match=rf"packing: .* {attention} attention"):
        selfcheck.packing(Bare(attention, Leaky(0, 1)), rows)


def test_packed_rows_train_what_padded_ones_train(plain_job, plain, tmp_path):
    result = launch(plain_job(packing=True), tmp_path)
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (plain[0], tmp_path)]
    for padded, packed in zip(*lines, strict=True):
        assert packed["tokens"] == padded["tokens"]
        assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-4)
        assert packed["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-3)
    assert lines[1][-1]["val_loss"] == pytest.approx(lines[0][-1]["val_loss"], rel=1e-4)
    assert result.details["self_checks"]["packing"]["attention"] == "eager"


def test_a_packer_that_lets_rows_see_each_other_is_caught(plain_job, tmp_path):
    program = Path(__file__).with_name("leaky_backend.py")
    command = (sys.executable, str(program))
    with pytest.raises(TrainingFailed, match=r"self-check failed.*packing: .* eager attention"):
        launch(plain_job(backend="command", command=command, packing=True), tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
