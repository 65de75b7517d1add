"""Two nodes on one machine: the same command twice, told apart as the pods of a Job are."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainyard.errors import InputError
from trainyard.files import write_json
from trainyard.process import ProcessRecord, free_port, is_alive
from trainyard.recipe.train import TrainSpec
from trainyard.training import nodes
from trainyard.training.distributed import here
from trainyard.training.job import JobFile, TrainJob

PROGRAM = Path(__file__).with_name("program.py")
LAUNCH = """
import sys
from pathlib import Path
from trainyard.errors import TrainingFailed
from trainyard.training.job import TrainJob
from trainyard.training.launcher import launch

try:
    launch(TrainJob.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
except TrainingFailed as error:
    sys.exit(str(error))
"""


def start(rank: int, place: Path, command: list[str], port: int) -> subprocess.Popen[bytes]:
    """What the container of one pod runs."""
    env = os.environ | {
        "JOB_COMPLETION_INDEX": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        nodes.CALLS: str(place / "calls"),
    }  # fmt: skip
    wrapped = [sys.executable, "-m", "trainyard.training.nodes", "--nodes=2", *command]
    return subprocess.Popen(wrapped, env=env)


def job_of(mode: str, place: Path) -> TrainJob:
    rows = place / "train.jsonl"
    rows.write_text('{"id": "a"}\n')
    command = (sys.executable, str(PROGRAM), mode)
    return TrainJob(
        name="test", base_model=place, base_ref="base", base_digest="0", train=rows,
        data_digest="1", nodes=2,
        spec=TrainSpec(backend="command", command=command, batch_size=8, device_batch_size=4),
    )  # fmt: skip


def train(mode: str, place: Path) -> tuple[Path, list[int]]:
    """Run one job on two nodes; return its folder and how both ended."""
    (place / "job.json").write_text(job_of(mode, place).model_dump_json())
    folder, port = place / "folder", free_port()
    command = [sys.executable, "-c", LAUNCH, str(place / "job.json"), str(folder)]
    pods = [start(rank, place, command, port) for rank in (1, 0)]
    try:
        return folder, [pod.wait(250) for pod in reversed(pods)]
    finally:
        for pod in pods:
            pod.kill()


def attempts(folder: Path) -> list[tuple[int, int]]:
    found = json.loads((folder / "attempts.json").read_text())["attempts"]
    return [(attempt["device_batch_size"], attempt["exit"]) for attempt in found]


def test_every_attempt_runs_on_all_nodes_and_both_leave_at_its_end(tmp_path):
    folder, ends = train("second-node-needs-2-rows", tmp_path)
    assert ends == [0, 0]
    assert attempts(folder) == [(4, 86), (2, 0)]
    ran = (folder / "ran").read_text().split()
    assert sorted(ran) == ["0:1", "0:2", "1:1", "1:2"]
    assert (folder / "node-1-log.txt").is_file()


def test_what_crashes_on_another_node_starts_all_of_them_again(tmp_path):
    folder, ends = train("second-node-crashes-once", tmp_path)
    assert ends == [0, 0]
    assert attempts(folder) == [(4, 1), (4, 0)]


def test_a_training_that_cannot_go_on_fails_the_first_pod_and_so_the_job(tmp_path, capfd):
    folder, ends = train("not-finite", tmp_path)
    assert ends == [1, 0]
    assert attempts(folder) == [(4, 87)]
    assert "loss nan, gradient norm nan: lower learning_rate" in capfd.readouterr().err


def test_sigterm_at_another_node_ends_its_part_and_fails_its_pod(tmp_path):
    file = JobFile(
        job=job_of("hangs", tmp_path), backend="command", device_batch_size=4, attempt=1,
        identity={},
    )  # fmt: skip
    write_json(tmp_path / "job.json", file.model_dump(mode="json"))
    call = nodes.Call(folder=tmp_path, attempt=1)
    write_json(tmp_path / "calls" / "localhost.json", call.model_dump(mode="json"))
    pod = start(1, tmp_path, ["unused"], free_port())
    record, end = tmp_path / "node-1-process.json", time.monotonic() + 120
    try:
        while not (record.is_file() and (tmp_path / "heartbeat.json").is_file()):
            assert time.monotonic() < end
            time.sleep(0.1)
        program = ProcessRecord.model_validate_json(record.read_text())
        pod.terminate()
        assert pod.wait(120) == 128 + signal.SIGTERM
        assert not is_alive(program)
    finally:
        pod.kill()


def test_one_node_is_the_command_itself():
    wrapped = [sys.executable, "-m", "trainyard.training.nodes", "--nodes=1"]
    done = subprocess.run([*wrapped, "sh", "-c", "echo $$; exit 3"], capture_output=True)
    assert done.returncode == 3


def test_a_machine_that_is_none_of_so_many_is_refused(monkeypatch):
    with pytest.raises(InputError, match="nodes is 2 and this is a job of 1: several machines are"):
        here(2)
    monkeypatch.setenv("TRAINYARD_NODES", "2")
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    with pytest.raises(InputError, match="is completionMode of the Job Indexed"):
        here(2)
