"""Both backends really train here, on the CPU; each start of the libraries takes ten seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainyard.errors import InputError, TrainingFailed
from trainyard.files import digest_tree, read_json
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch

BACKENDS = ("trl", "unsloth")
BASE = Path("recipes/quickstart/base")
LINEAR = 7 * read_json(BASE / "config.json")["num_hidden_layers"]
"""Layers with an adapter: four projections of attention, three of the MLP."""


@pytest.fixture(scope="session")
def reference(make_job, tmp_path_factory):
    """One uninterrupted run per backend, with dropout where the backend trains fast with it."""
    made = {}

    def of(backend):
        if backend not in made:
            job = make_job(backend=backend, dropout=0.1 if backend == "trl" else 0.0)
            folder = tmp_path_factory.mktemp(backend)
            made[backend] = (job, folder, launch(job, folder))
        return made[backend]

    return of


@pytest.mark.parametrize("backend", BACKENDS)
def test_nf4_qlora_learns_and_leaves_a_whole_adapter(backend, reference):
    _, folder, result = reference(backend)
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5
    assert result.backend == backend
    assert result.details["self_checks"]["quantised_layers"] == LINEAR
    assert 0 < result.details["self_checks"]["longest_step_gib"] < 8
    assert 0 < result.details["estimated_gib"] < 8
    assert result.digest == digest_tree(result.adapter)
    assert {p.name for p in result.adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = read_json(result.adapter / "adapter_config.json")
    assert config["base_model_name_or_path"] == "recipes/quickstart/base"


def test_both_backends_agree_on_the_loss(make_job, reference):
    # the same rows in the same order, and the adapter starts at zero: the first loss is the base's
    first = [read_metrics(reference(b)[1] / "metrics.jsonl")[0]["loss"] for b in BACKENDS]
    assert first[0] == pytest.approx(first[1], rel=1e-3)


def test_an_interrupted_run_ends_with_the_same_bytes(reference, tmp_path):
    job, folder, whole = reference("unsloth")
    sent = []

    def interrupt(line):
        for number, step in ((signal.SIGTERM, 4), (signal.SIGKILL, 7)):
            if line["step"] >= step and number not in sent:
                sent.append(number)
                os.kill(read_json(tmp_path / "process.json")["pid"], number)
                break

    with pytest.raises(TrainingFailed, match="SIGKILL ended it"):  # one end is retried, not two
        launch(job, tmp_path, progress=interrupt)
    assert sent == [signal.SIGTERM, signal.SIGKILL]
    result = launch(job, tmp_path)
    begun = [attempt["from_step"] for attempt in result.attempts]
    assert begun[-2] >= 4  # SIGTERM saves first: wherever it was
    assert begun[-1] >= 6  # the last whole checkpoint before the kill
    assert result.digest == whole.digest
    losses = [
        [line["loss"] for line in read_metrics(f / "metrics.jsonl")] for f in (folder, tmp_path)
    ]
    assert losses[0] == losses[1]


def test_when_the_launcher_is_killed_nothing_runs_on_and_the_next_one_goes_on(reference, tmp_path):
    job, _, whole = reference("trl")
    (tmp_path / "job.txt").write_text(job.model_dump_json())
    code = (
        "import sys; from pathlib import Path\n"
        "from trainyard.training.job import TrainJob\n"
        "from trainyard.training.launcher import launch\n"
        "folder = Path(sys.argv[1])\n"
        "launch(TrainJob.model_validate_json((folder / 'job.txt').read_text()), folder)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while not (tmp_path / "checkpoints" / "checkpoint-3" / "complete.json").exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    trainer = psutil.Process(read_json(tmp_path / "process.json")["pid"])
    launcher.kill()
    launcher.wait()
    psutil.wait_procs([trainer], timeout=30)
    assert not trainer.is_running()
    result = launch(job, tmp_path)
    assert result.attempts[-1]["from_step"] >= 3
    assert result.digest == whole.digest


def test_the_real_out_of_memory_exception_climbs_down_a_rung(make_job, reference, tmp_path):
    program = Path(__file__).with_name("oom_backend.py")
    job = make_job(backend="command", command=(sys.executable, str(program)), dropout=0.1)
    result = launch(job, tmp_path)
    assert [(a["device_batch_size"], a["exit"]) for a in result.attempts] == [(4, 86), (2, 0)]
    assert result.attempts[1]["from_step"] == 3
    # dropout draws other masks for other micro-batches, so equal only before the rung
    whole = read_metrics(reference("trl")[1] / "metrics.jsonl")
    smaller = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["tokens"] for line in smaller] == [line["tokens"] for line in whole]
    assert smaller[2]["loss"] == whole[2]["loss"]
    assert smaller[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=0.05)


def test_a_loss_that_is_not_finite_stops_at_once(make_job, tmp_path):
    with pytest.raises(TrainingFailed, match=r"loss nan|gradient norm (nan|inf)"):
        launch(make_job(backend="trl", learning_rate=1e30, method="lora"), tmp_path)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) < 8


def test_rows_that_do_not_end_are_refused_before_training(make_job, tmp_path):
    job = make_job(backend="trl").model_copy(
        update={
            "chat_template": (
                "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
                "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}"
                "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
            ),
        }
    )
    with pytest.raises(TrainingFailed, match=r"self-check failed.*end of turn"):
        launch(job, tmp_path)


def test_the_adapter_holds_the_rank_and_the_layers_of_the_recipe(reference):
    result = reference("unsloth")[2]
    with safe_open(result.adapter / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
        shapes = {tuple(weights.get_slice(n).get_shape()) for n in names if "q_proj.lora_A" in n}
    assert len(names) == LINEAR * 2
    assert {shape[0] for shape in shapes} == {4}


def test_an_adapter_continues_where_another_ended(make_job, reference, tmp_path):
    _, folder, before = reference("unsloth")
    job = make_job(backend="unsloth", continue_from=str(before.adapter), max_steps=1)
    launch(job, tmp_path)
    first = read_metrics(tmp_path / "metrics.jsonl")[0]["loss"]
    fresh = [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
    assert abs(first - fresh[-1]) < abs(first - fresh[0])
    other_rank = make_job(backend="unsloth", continue_from=str(before.adapter), rank=2)
    with pytest.raises(InputError, match=r"other tensors .* rank, target_modules"):
        launch(other_rank, tmp_path)


def test_dora_and_rank_stabilised_scale_reach_the_adapter(make_job, tmp_path):
    job = make_job(
        backend="trl",
        dora=True,
        rslora=True,
        target_modules=("q_proj", "v_proj"),
        activation_checkpointing="block",
        max_steps=2,
    )
    result = launch(job, tmp_path)
    config = read_json(result.adapter / "adapter_config.json")
    assert (config["use_dora"], config["use_rslora"]) == (True, True)
    with safe_open(result.adapter / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert sum("lora_magnitude_vector" in name for name in names) == LINEAR / 7 * 2
    assert result.details["trained_parameters"] > 0


def test_training_stops_when_validation_worsens_and_keeps_the_best(make_job, rows, tmp_path):
    # a rate that destroys the model after a few steps
    job = make_job(backend="unsloth", learning_rate=3.0, eval_every=1, patience=2)
    result = launch(job.model_copy(update={"val": rows}), tmp_path)
    losses = {line["step"]: line["val_loss"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    best = min(losses, key=lambda step: losses[step])
    assert result.steps == best + 2 < 8
    assert result.details["stopped_early"] is True
    assert (result.details["best_step"], result.details["val_loss"]) == (best, losses[best])
    kept = load_file(tmp_path / "best" / f"step-{best}" / "adapter_model.safetensors")
    written = load_file(result.adapter / "adapter_model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in kept.items())
