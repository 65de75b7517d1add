"""Two processes over gloo on the CPU train what one trains."""

import pytest
from safetensors.torch import load_file

from trainyard.errors import InputError
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch


def test_two_processes_equal_one_at_the_same_batch(plain_job, plain, tmp_path):
    one_folder, one = plain
    two = launch(plain_job().model_copy(update={"processes": 2}), tmp_path)
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one_folder, tmp_path)]
    for alone, together in zip(*lines, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert together["tokens"] == alone["tokens"]
    assert lines[1][-1]["val_loss"] == pytest.approx(lines[0][-1]["val_loss"], rel=1e-4)
    assert two.details["best_step"] == one.details["best_step"] == 4
    weights = [load_file(r.adapter / "adapter_model.safetensors") for r in (one, two)]
    for name, tensor in weights[0].items():
        assert weights[1][name] == pytest.approx(tensor, abs=2e-4)


def test_a_batch_that_the_processes_cannot_share_is_refused(plain_job, tmp_path):
    job = plain_job().model_copy(update={"processes": 3})
    with pytest.raises(InputError, match=r"batch_size \(8\) must be a multiple .* 3 processes"):
        launch(job, tmp_path)
