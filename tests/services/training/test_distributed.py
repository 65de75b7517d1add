"""Two processes over gloo on the CPU train what one trains: of one node, and of two."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests.unit.training.test_nodes import LAUNCH
from trainyard.errors import InputError
from trainyard.files import read_json
from trainyard.process import free_port
from trainyard.training.distributed import command_of
from trainyard.training.job import JobFile, TrainResult
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch


def test_two_processes_equal_one_at_the_same_batch(plain_job, plain, tmp_path):
    one_folder, one = plain
    two = launch(plain_job().model_copy(update={"processes": 2}), tmp_path)
    assert_equal(one, one_folder, two, tmp_path)
    assert two.details["best_step"] == one.details["best_step"] == 4


def test_two_nodes_equal_one_at_the_same_batch(plain_job, plain, tmp_path):
    """Each node is what a pod of the Job runs; the second one's program is lost once."""
    one_folder, one = plain
    job, folder, port = tmp_path / "asked.json", tmp_path / "job", free_port()
    asked = plain_job().model_copy(update={"nodes": 2})
    job.write_text(asked.model_dump_json())
    command = [sys.executable, "-m", "trainyard.training.nodes", "--nodes=2"]
    command += [sys.executable, "-c", LAUNCH, str(job), str(folder)]
    here = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TRAINYARD_CALLS": str(tmp_path)}
    pods = [
        subprocess.Popen(command, env=os.environ | here | {"JOB_COMPLETION_INDEX": str(rank)})
        for rank in (0, 1)
    ]
    try:
        kill_program_of_node_1(folder)
        assert [pod.wait(250) for pod in pods] == [0, 0], (folder / "log.txt").read_text()
    finally:
        for pod in pods:
            pod.kill()
    found = read_json(folder / "result.json") | {"adapter": folder / "adapter", "attempts": []}
    assert_equal(one, one_folder, TrainResult.model_validate(found), folder)
    exits = [attempt["exit"] for attempt in read_json(folder / "attempts.json")["attempts"]]
    assert exits[-1] == 0
    assert len(exits) == 2


def kill_program_of_node_1(folder):
    file, end = folder / "node-1-process.json", time.monotonic() + 120
    while not file.is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(read_json(file)["pid"], signal.SIGKILL)


def assert_equal(one, one_folder, two, two_folder):
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one_folder, two_folder)]
    for alone, together in zip(*lines, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert together["tokens"] == alone["tokens"]
    assert lines[1][-1]["val_loss"] == pytest.approx(lines[0][-1]["val_loss"], rel=1e-4)
    weights = [load_file(r.adapter / "adapter_model.safetensors") for r in (one, two)]
    for name, tensor in weights[0].items():
        assert weights[1][name] == pytest.approx(tensor, abs=2e-4)


SAID = """
import os
import torch

torch.distributed.init_process_group("gloo")
found = torch.tensor(1 + torch.distributed.get_rank())
torch.distributed.all_reduce(found)
print(os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"], int(found))
torch.distributed.destroy_process_group()
"""


def test_accelerate_brings_the_processes_of_two_nodes_together(plain_job, tmp_path, monkeypatch):
    """The command of a GPU job, around a program that needs no GPU."""
    job = plain_job().model_copy(update={"gpus": 1, "nodes": 2})
    file = JobFile(job=job, backend="trl", device_batch_size=2, attempt=2, identity={})
    (tmp_path / "said.py").write_text(SAID)
    for name, value in {"TRAINYARD_NODES": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port() - 1))  # the second attempt meets one above
    started = []
    for rank in (0, 1):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(rank))
        command = command_of(file, tmp_path, [str(tmp_path / "said.py")])
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        said = [program.communicate(timeout=250)[0].split() for program in started]
    finally:
        for program in started:
            program.kill()
    assert said == [["0", "0", "2", "3"], ["1", "0", "2", "3"]]


def test_a_batch_that_the_processes_cannot_share_is_refused(plain_job, tmp_path):
    job = plain_job().model_copy(update={"processes": 3})
    with pytest.raises(InputError, match=r"batch_size \(8\) must be a multiple .* 3 processes"):
        launch(job, tmp_path)
