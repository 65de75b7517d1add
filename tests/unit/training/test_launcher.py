import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trainyard.errors import InputError, TrainingFailed
from trainyard.recipe.train import TrainSpec
from trainyard.training.job import TrainJob
from trainyard.training.launcher import half, launch
from trainyard.training.watchdog import Limits

PROGRAM = Path(__file__).with_name("program.py")
QUICK = Limits(start_s=5.0, step_s=0.5, steps=0.0)


@pytest.fixture
def make_job(tmp_path):
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"id": "a"}\n')

    def make(mode, **settings):
        command = (sys.executable, str(PROGRAM), mode)
        return TrainJob(
            name="test",
            base_model=tmp_path,
            base_ref="base",
            base_digest="0",
            train=rows,
            data_digest="1",
            spec=TrainSpec(backend="command", command=command, batch_size=8, **settings),
        )

    return make


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"backend": "trl", "optimizer": "adamw_8bit"}, "needs a GPU: set optimizer: adamw"),
        ({"backend": "trl", "device_batch_size": 8}, r"\(8\) times 2 processes"),
        ({"backend": "trl", "continue_from": "nowhere"}, "continue_from nowhere: no adapter_model"),
    ],
)
def test_what_cannot_work_is_refused_before_a_process_starts(make_job, tmp_path, settings, text):
    job = make_job("done")
    spec = TrainSpec(batch_size=8, **settings)
    with pytest.raises(InputError, match=text):
        launch(job.model_copy(update={"spec": spec, "processes": 2}), tmp_path / "job")
    assert not (tmp_path / "job" / "job.json").exists()


def test_progress_gets_every_step_and_the_time_left(make_job, tmp_path):
    seen = []
    result = launch(make_job("done"), tmp_path / "job", progress=seen.append)
    assert [(line["step"], line["eta_s"]) for line in seen] == [(1, 1.0), (2, 0.0)]
    assert (result.steps, result.tokens) == (2, 20)
    assert result.adapter == tmp_path / "job" / "adapter"


def test_a_finished_job_is_not_run_again(make_job, tmp_path):
    first = launch(make_job("done"), tmp_path / "job")
    assert launch(make_job("done"), tmp_path / "job") == first
    assert len(first.attempts) == 1


def test_a_finished_job_with_a_damaged_adapter_is_run_again(make_job, tmp_path):
    first = launch(make_job("done"), tmp_path / "job")
    (first.adapter / "adapter_model.safetensors").write_bytes(b"other")
    again = launch(make_job("done"), tmp_path / "job")
    assert again.digest == first.digest
    assert len(again.attempts) == 2


def test_another_recipe_in_the_same_folder_starts_afresh(make_job, tmp_path):
    launch(make_job("done"), tmp_path / "job")
    again = launch(make_job("done", learning_rate=1.0), tmp_path / "job")
    assert len(again.attempts) == 1


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(make_job, tmp_path):
    job = make_job("needs-2-rows", device_batch_size=8)
    result = launch(job, tmp_path / "job")
    assert [a["device_batch_size"] for a in result.attempts] == [8, 4, 2]
    assert [a["exit"] for a in result.attempts] == [86, 86, 0]


def test_what_never_fits_is_given_up_with_a_way_out(make_job, tmp_path):
    with pytest.raises(TrainingFailed, match=r"CUDA out of memory.*1 rows.*activation_check"):
        launch(make_job("never-fits", device_batch_size=8), tmp_path / "job")


@pytest.mark.parametrize(
    ("batch", "micro", "expected"),
    [(16, 8, 4), (12, 4, 2), (15, 5, 1), (18, 9, 3), (16, 1, None)],
)
def test_half_divides_the_batch(batch, micro, expected):
    assert half(batch, micro) == expected


def test_a_stalled_program_is_ended_and_started_once_more(make_job, tmp_path):
    result = launch(make_job("hangs-once"), tmp_path / "job", limits=QUICK)
    assert "no heartbeat" in result.attempts[0]["reason"]
    assert result.attempts[1]["exit"] == 0


def test_a_program_that_always_stalls_is_given_up(make_job, tmp_path):
    with pytest.raises(TrainingFailed, match="no heartbeat"):
        launch(make_job("hangs"), tmp_path / "job", limits=QUICK)


def test_a_program_that_somebody_killed_is_started_again(make_job, tmp_path):
    result = launch(make_job("killed-once"), tmp_path / "job")
    assert "SIGKILL" in result.attempts[0]["reason"]
    assert result.attempts[1]["exit"] == 0


def test_steps_trained_again_are_reported_again_and_kept_once(make_job, tmp_path):
    seen = []
    result = launch(make_job("goes-on"), tmp_path / "job", progress=seen.append)
    assert [a["from_step"] for a in result.attempts] == [0, 1]
    assert [line["step"] for line in seen] in ([1, 2, 2], [1, 2])  # the kill may come first
    lines = (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_the_hard_limit_ends_it(make_job, tmp_path):
    with pytest.raises(TrainingFailed, match="longer than"):
        launch(make_job("hangs"), tmp_path / "job", limits=Limits(total_s=0.3))


@pytest.mark.parametrize(
    ("mode", "error", "text"),
    [
        ("not-finite", TrainingFailed, "loss nan.*lower learning_rate"),
        ("self-check", TrainingFailed, "self-check failed.*token 2 pads"),
        ("bad-input", InputError, "row 17 is too long"),
        ("crashes", TrainingFailed, "(?s)log.txt ends with.*no module named cuda"),
        ("leaves-nothing", TrainingFailed, "left no result"),
    ],
)
def test_each_end_says_what_happened_and_is_not_retried(make_job, tmp_path, mode, error, text):
    with pytest.raises(error, match=text):
        launch(make_job(mode), tmp_path / "job")
    assert len(json.loads((tmp_path / "job" / "attempts.json").read_text())["attempts"]) == 1


def test_an_exception_ends_the_whole_process_group(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr("trainyard.training.watchdog.GRACE_S", 1.0)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(make_job("with-child"), tmp_path / "job", progress=interrupt)
    child = int((tmp_path / "job" / "child").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)


def test_sigterm_to_the_caller_ends_the_program_first(make_job, tmp_path):
    (tmp_path / "job.txt").write_text(make_job("hangs").model_dump_json())
    code = (
        "import sys; from pathlib import Path\n"
        "from trainyard.training.job import TrainJob\n"
        "from trainyard.training.launcher import launch\n"
        "folder = Path(sys.argv[1])\n"
        "launch(TrainJob.model_validate_json((folder / 'job.txt').read_text()), folder)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while not (tmp_path / "heartbeat.json").exists():
        assert caller.poll() is None
        time.sleep(0.02)
    program = psutil.Process(json.loads((tmp_path / "process.json").read_text())["pid"])
    caller.terminate()
    assert caller.wait() == 143
    assert not program.is_running()
    assert not (tmp_path / "process.json").exists()
