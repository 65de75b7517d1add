"""Rows laid end to end are trained as if each were alone, or nothing is trained."""

import sys
from pathlib import Path

import pytest

from trainyard.errors import TrainingFailed
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch


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
