"""Real processes that compete for the locks of GPUs that are only named."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainyard import slots
from trainyard.errors import InputError, Unavailable
from trainyard.recipe.resources import ResourcesSpec

ONE = ResourcesSpec(gpus=1)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_SLOTS", str(tmp_path / "slots"))
    monkeypatch.setenv("TRAINYARD_GPUS", "a:24,b:24,big:80")


def test_a_job_sees_the_gpus_it_holds_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    with slots.held(ResourcesSpec(gpus=2), "a run") as mine:
        assert mine == ["a", "b"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "a,b"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "before"
    with slots.held(ResourcesSpec(), "on the CPU") as mine:
        assert mine == []


def test_the_smallest_card_that_is_large_enough_is_taken() -> None:
    with slots.held(ONE, "x") as small, slots.held(ResourcesSpec(gpus=1, gpu_gib=40), "y") as large:
        assert (small, large) == (["a"], ["big"])
    with (
        pytest.raises(InputError, match=r"asks for 1 GPUs of 100 GiB, and this machine has a \(24"),
        slots.held(ResourcesSpec(gpus=1, gpu_gib=100), "x"),
    ):
        pass


def test_all_or_none_and_who_holds_them_is_said() -> None:
    with slots.held(ONE, "run 7"):
        with (
            pytest.raises(Unavailable, match=r"a has 24.0 GiB free, last held by run 7 \(process"),
            slots.held(ResourcesSpec(gpus=3), "all", wait_s=0),
        ):
            pass
        with slots.held(ResourcesSpec(gpus=2), "the rest", wait_s=0) as mine:
            assert mine == ["b", "big"]


def test_a_card_that_somebody_else_uses_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "gpus", lambda: [slots.Gpu("a", 24, 12), slots.Gpu("b", 24, 23.5)])
    with slots.held(ONE, "x", wait_s=0) as mine:
        assert mine == ["b"]


def test_nvidia_smi_is_asked_and_its_absence_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINYARD_GPUS")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="nvidia-smi found none"), slots.held(ONE, "x"):
        pass
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU-1, 81559, 81000'\necho 'GPU-2, 81559, 9000'\n")
    program.chmod(0o755)
    with slots.held(ResourcesSpec(gpus=1, gpu="H100"), "x", wait_s=0) as mine:
        assert mine == ["GPU-1"]
    monkeypatch.setenv("TRAINYARD_GPUS", "nonsense")
    with pytest.raises(InputError, match="write ID:GIB"):
        slots.gpus()


HOLDER = """
import subprocess, sys, time
from trainyard import slots
from trainyard.recipe.resources import ResourcesSpec
with slots.held(ResourcesSpec(gpus=3), "holder"):
    child = subprocess.Popen(["sleep", "60"], pass_fds=slots.locks())
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_frees_its_gpus_when_its_program_is_gone_too() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        program = int(holder.stdout.readline())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with pytest.raises(Unavailable, match="holder"), slots.held(ONE, "next", wait_s=0):
        pass
    os.kill(program, signal.SIGKILL)
    begin = time.monotonic()
    with slots.held(ONE, "next", wait_s=120, poll_s=0.02):
        assert time.monotonic() - begin < 60


def compete(log: Path, number: int) -> None:
    """Hold a GPU ten times; an exclusive file stands for the GPU, which two cannot make."""
    for _ in range(10):
        with slots.held(ONE, str(number), poll_s=0.001) as mine:
            gpu = log / mine[0]
            os.close(os.open(gpu, os.O_CREAT | os.O_EXCL))
            time.sleep(0.002)
            if number == 0:
                gpu.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            gpu.unlink()
    (log / f"done-{number}").touch()


def test_nobody_ever_meets_another_on_a_gpu(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    many = [context.Process(target=compete, args=(tmp_path, n)) for n in range(8)]
    for one in many:
        one.start()
    for one in many:
        one.join(240)
    assert [one.exitcode for one in many] == [-signal.SIGKILL] + [0] * 7
    assert len(list(tmp_path.glob("done-*"))) == 7
