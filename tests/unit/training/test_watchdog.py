import json
import sys
import time
from pathlib import Path

import pytest

from trainyard.recipe.train import TrainSpec
from trainyard.training.job import JobFile, TrainJob
from trainyard.training.watchdog import Limits, Watched, command_of, environment_of


def job_file(tmp_path, backend="unsloth", **changes):
    job = TrainJob(
        name="test",
        base_model=tmp_path,
        base_ref="base",
        base_digest="0",
        train=tmp_path / "train.jsonl",
        data_digest="1",
        spec=TrainSpec(batch_size=16, device_batch_size=2, threads=3),
        **changes,
    )
    return JobFile(job=job, backend=backend, device_batch_size=2, attempt=1, identity={})


def test_a_gpu_job_may_not_fall_back_to_the_cpu(tmp_path):
    on_gpu = environment_of(job_file(tmp_path, gpus=1), tmp_path)
    assert on_gpu["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
    on_cpu = environment_of(job_file(tmp_path), tmp_path)
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert "UNSLOTH_DISABLE_CPU_FALLBACK" not in on_cpu


def test_threads_and_the_compile_cache_belong_to_the_job(tmp_path):
    found = environment_of(job_file(tmp_path), tmp_path)
    assert found["OMP_NUM_THREADS"] == "3"
    assert Path(found["UNSLOTH_COMPILE_LOCATION"]).parent == tmp_path


@pytest.mark.parametrize(
    ("changes", "processes", "launcher"),
    [
        ({"gpus": 4}, 4, "accelerate.commands.launch"),
        ({"processes": 2}, 2, "torch.distributed.run"),
    ],
)
def test_several_devices_share_the_batch_under_a_launcher(tmp_path, changes, processes, launcher):
    file = job_file(tmp_path, **changes)
    assert command_of(file, tmp_path)[:3] == [sys.executable, "-m", launcher]
    assert file.grad_accum_steps == 16 // 2 // processes


def test_a_program_that_beats_is_not_stalled_and_a_silent_one_is(tmp_path):
    limits = Limits(start_s=0.2, step_s=0.2, steps=0.0)
    watched = Watched(tmp_path, limits, time.monotonic())
    assert watched.stalled() is None
    for step in range(3):
        (tmp_path / "heartbeat.json").write_text(json.dumps({"phase": "training", "step": step}))
        assert watched.stalled() is None
    watched.beat = (watched.beat[0] - 1.0, watched.beat[1])
    watched.begin -= 1.0
    assert "no heartbeat for 1 s" in (watched.stalled() or "")


def test_slow_steps_earn_patience(tmp_path):
    watched = Watched(tmp_path, Limits(step_s=1.0, steps=20.0), time.monotonic() - 100)
    (tmp_path / "heartbeat.json").write_text(json.dumps({"phase": "training", "step": 1}))
    watched.stalled()
    watched.beat = (watched.beat[0] - 50, watched.beat[1])
    watched.step_s = [10.0]
    assert watched.stalled() is None
    watched.step_s = [1.0]
    assert "limit 20 s" in (watched.stalled() or "")


def test_half_a_line_waits_for_its_rest(tmp_path):
    watched = Watched(tmp_path, Limits(), time.monotonic())
    metrics = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "total_steps": 3, "seconds": 2.0}) + "\n"
    metrics.write_text(line[:10])
    assert list(watched.news()) == []
    metrics.write_text(line)
    assert [found["eta_s"] for found in watched.news()] == [4.0]
    assert list(watched.news()) == []
