import json
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import SMALL, Clone


def test_a_release_serves_what_it_trained_and_the_next_one_skips(clone: Clone) -> None:
    code, output = clone.release()
    assert code == 0, output
    first = clone.summary()
    assert (first["status"], first["verdict"]) == ("done", "PASS")
    assert first["version"] in output
    assert Path(clone.folder, first["report"]).exists()
    models = httpx.get(f"{first['endpoint']}/models").json()["data"]
    assert "small" in {model["id"] for model in models}

    code, output = clone.release()
    assert code == 0, output
    skipped = {name for name, status in clone.statuses().items() if status == "skipped"}
    assert skipped == {"data", "train", "evaluate", "register", "rollout"}
    assert clone.summary()["version"] == first["version"]


def test_a_changed_recipe_goes_through_the_canary_and_can_be_rolled_back(clone: Clone) -> None:
    assert clone.release()[0] == 0
    first = clone.summary()
    code, output = clone.release(SMALL, "train.max_steps=14", "deploy.soak_s=0")
    assert code == 0, output
    second = clone.summary()
    assert second["version"] != first["version"]
    rollout = json.loads((clone.folder / ".trainyard/runs" / second["run_id"] / "rollout.json").read_text())
    weights = [step["weight"] for step in rollout["steps"]]
    assert weights[-1] == 100
    assert 5 in weights
    assert all(s["canary"]["requests"] > 0 for s in rollout["steps"] if 0 < s["weight"] < 100)

    code, output = clone.run("trainyard", "rollback", "small", "--why", "drill", "--json")
    assert code == 0, output
    code, output = clone.run("trainyard", "status", "--json")
    assert json.loads(output)["served"][0]["champion"] == first["version"]


def test_a_failed_gate_registers_and_serves_nothing(clone: Clone) -> None:
    code, output = clone.release(SMALL, 'gates={exact_match: ">= 0.9"}')
    assert code == 1
    assert "Traceback" not in output
    summary = clone.summary()
    assert (summary["status"], summary["failed_stage"]) == ("failed", "gate")
    assert summary["verdict"] in ("FAIL", "INCONCLUSIVE", "INVALID")
    assert summary["version"] is None
    assert not list(clone.folder.glob(".trainyard/archive/models/*/*/manifest.json"))
    assert not clone.processes()
    assert Path(clone.folder, summary["report"]).exists()


@pytest.mark.parametrize("stage", ["data", "train", "evaluate", "register", "rollout"])
def test_a_release_killed_in_any_stage_goes_on_where_it_was(clone: Clone, stage: str) -> None:
    with clone.start("flows.release", SMALL) as process:
        clone.wait_for(
            f"stage {stage}",
            lambda: clone.summaries() and clone.statuses().get(stage) == "running",
        )
        finished = [name for name, status in clone.statuses().items() if status == "done"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    if stage != "rollout":
        clone.wait_for("the end of its children", lambda: not clone.processes(), 30)
    code, output = clone.release()
    assert code == 0, output
    again = clone.statuses()
    repeated = set(finished) & {"data", "train", "evaluate"}
    assert {again[name] for name in repeated} <= {"skipped"}
    manifests = list(clone.folder.glob(".trainyard/archive/models/small/*/manifest.json"))
    assert len(manifests) == 1
    code, output = clone.run("trainyard", "verify", "small@production")
    assert code == 0, output


def test_an_interrupted_training_leaves_nothing_running_and_resumes(clone: Clone) -> None:
    with clone.start("flows.release", SMALL, "--set", "train.max_steps=40") as process:
        checkpoints = ".trainyard/stages/train/*/checkpoints/*"
        clone.wait_for("a checkpoint", lambda: list(clone.folder.glob(checkpoints)))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
    assert "run the same command again" in output
    assert not clone.processes()
    code, output = clone.release(SMALL, "train.max_steps=40")
    assert code == 0, output
    run = clone.folder / ".trainyard/runs" / clone.summary()["run_id"]
    attempts = json.loads((run / "train/result.json").read_text())["attempts"]
    assert attempts[-1]["from_step"] > 0


BAD = {
    "a missing recipe": (["nope.yaml"], "nope.yaml does not exist"),
    "a folder": (["recipes"], "is a folder"),
    "a typo": ([SMALL, "--set", "train.rnk=3"], "did you mean `rank`?"),
    "a batch that does not divide": (
        [SMALL, "--set", "train.batch_size=10", "--set", "train.device_batch_size=4"],
        "batch_size (10) must be a multiple of device_batch_size (4)",
    ),
    "no base model": ([SMALL, "--set", "base_model=nowhere"], "nowhere"),
    "an unknown environment": ([SMALL, "--environment", "lptop"], "did you mean laptop?"),
    "data that are not there": ([SMALL, "--set", "data.train=[nope.jsonl]"], "nope.jsonl"),
    "a gate that can never pass": (
        [SMALL, "--set", 'gates={exact_match: ">= 0.9999"}'],
        "exact_match",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_exit_2(
    clone: Clone, arguments: list[str], said: str
) -> None:
    code, output = clone.run("flows.release", *arguments)
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output


def test_a_taken_port_is_named_and_nothing_is_served(clone: Clone) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = clone.release(SMALL, f"deploy.port={port}")
    assert code == 2, output
    assert str(port) in output
    assert "Traceback" not in output
    assert not [p for p in clone.processes() if p.status() != psutil.STATUS_ZOMBIE]
