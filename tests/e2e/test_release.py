import json
import shutil
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import SMALL, Clone
from tests.e2e.pushing import pushing

STAGES = ["data", "train", "evaluate", "register", "rollout"]

# all that follows, from the data to answers under traffic, happens without a network
pytestmark = pytest.mark.usefixtures("air_gap")


def ask(endpoint: str) -> httpx.Response:
    question = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = httpx.post(f"{endpoint}/chat/completions", json=question, timeout=60)
    assert answer.json()["choices"][0]["message"]["content"]
    return answer


def test_a_release_killed_in_every_stage_in_turn_goes_on_where_it_was(clone: Clone) -> None:
    for number, stage in enumerate(STAGES):
        runs = len(clone.summaries())
        with clone.start("flows.release", SMALL) as process:
            clone.wait_for(
                f"stage {stage}",
                lambda runs=runs, stage=stage: (
                    len(clone.summaries()) > runs and clone.statuses().get(stage) == "running"
                ),
            )
            process.send_signal(signal.SIGKILL)
            process.wait()
        finished = {name: clone.statuses()[name] for name in STAGES[: max(0, number - 1)]}
        assert set(finished.values()) <= {"skipped"}, f"repeated before {stage}: {finished}"
        if stage != "rollout":  # engines outlive a release, everything else must not
            clone.wait_for("the end of its children", lambda: not clone.processes(), 120)

    summary = clone.released()
    assert (summary["status"], summary["verdict"]) == ("done", "PASS")
    manifests = list(clone.folder.glob(".trainyard/archive/models/small/*/manifest.json"))
    assert len(manifests) == 1
    code, output = clone.run("trainyard", "verify", "small@production")
    assert code == 0, output


def test_a_release_is_served_without_any_route_out(clone: Clone, air_gap: str | None) -> None:
    if air_gap is not None:
        pytest.skip(air_gap)
    for address in ("192.0.2.1", "2001:db8::1"):
        with pytest.raises(OSError, match=r"unreachable|not available"):
            socket.create_connection((address, 443), timeout=30)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.com", 443)
    ask((clone.summary() if clone.summaries() else clone.released())["endpoint"])


def test_a_release_serves_what_it_trained_and_the_next_one_skips(clone: Clone) -> None:
    first = clone.released()
    assert Path(clone.folder, first["report"]).exists()
    models = httpx.get(f"{first['endpoint']}/models").json()["data"]
    assert "small" in {model["id"] for model in models}

    code, output = clone.release()
    assert code == 0, output
    assert first["version"] in output
    skipped = {name for name, status in clone.statuses().items() if status == "skipped"}
    assert skipped == set(STAGES)
    assert clone.summary()["version"] == first["version"]


def test_a_pushed_recipe_goes_through_the_canary_to_answers_and_can_be_rolled_back(
    clone: Clone,
) -> None:
    first = clone.released()
    small = clone.folder / SMALL
    text = small.read_text()
    with pushing(clone, SMALL) as git:
        before = git.commit()
        small.write_text(text.replace("max_steps: 12", "max_steps: 14"))
        after = git.commit()
        small.write_text(text)
        assert git.deliver(before, after).status_code == 202
        ended = git.outcome(after)
        assert ended["state"] == "success", ended["description"]
        second = clone.summary()
        assert second["version"] != first["version"]
        answered_by = ask(second["endpoint"]).headers["x-trainyard-version"]
        assert second["version"] == f"small@{answered_by[:12]}"
        run = clone.folder / ".trainyard/runs" / second["run_id"]
        steps = json.loads((run / "rollout.json").read_text())["steps"]
        assert [step["weight"] for step in steps][-1] == 100
        canary = [step for step in steps if 0 < step["weight"] < 100]
        assert canary[0]["weight"] == 5
        assert all(step["canary"]["requests"] > 0 for step in canary)

        code, output = clone.run("trainyard", "rollback", "small", "--why", "drill", "--json")
        assert code == 0, output
        code, output = clone.run("trainyard", "status", "--json")
        assert json.loads(output)["served"][0]["champion"] == first["version"]


def test_a_version_is_explained_from_its_answer_and_made_again_byte_by_byte(clone: Clone) -> None:
    first = clone.released()
    answer = ask(first["endpoint"])
    (clone.folder / "headers.txt").write_text(
        "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
    )
    code, output = clone.run("trainyard", "status", "--served", "headers.txt", "--html", "l.html")
    assert code == 0, output
    assert first["version"] in output
    assert "recipes/quickstart/train.jsonl" in (clone.folder / "l.html").read_text()
    shutil.move(clone.folder / "recipes" / "quickstart" / "train.jsonl", clone.folder / "gone")
    try:
        code, output = clone.run("trainyard", "reproduce", first["version"])
    finally:
        shutil.move(clone.folder / "gone", clone.folder / "recipes" / "quickstart" / "train.jsonl")
    assert code == 0, output
    assert "was made again, byte by byte" in output


def test_an_interrupted_training_resumes_and_a_failed_gate_registers_and_serves_nothing(
    clone: Clone,
) -> None:
    champion = clone.released()["version"]
    archived = list(clone.folder.glob(".trainyard/archive/models/*/*/manifest.json"))
    served = {process.pid for process in clone.processes()}
    changed = ["train.max_steps=40", "train.seed=1", 'gates={exact_match: ">= 0.8"}']
    options = [part for override in changed for part in ("--set", override)]
    with clone.start("flows.release", SMALL, *options) as process:
        done = ".trainyard/stages/train/*/checkpoints/checkpoint-*/complete.json"
        known = set(clone.folder.glob(done))
        clone.wait_for("a checkpoint", lambda: set(clone.folder.glob(done)) - known)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 130, output
    assert "run the same command again" in output
    assert {process.pid for process in clone.processes()} == served

    code, output = clone.release(SMALL, *changed)
    assert code == 1, output
    assert "Traceback" not in output
    summary = clone.summary()
    assert (summary["status"], summary["failed_stage"]) == ("failed", "gate")
    assert summary["verdict"] == "FAIL"
    assert summary["version"] is None
    assert Path(clone.folder, summary["report"]).exists()
    tries = max(
        clone.folder.glob(".trainyard/stages/train/*/attempts.json"),
        key=lambda file: file.stat().st_mtime,
    )
    assert json.loads(tries.read_text())["attempts"][-1]["from_step"] > 0
    assert archived == list(clone.folder.glob(".trainyard/archive/models/*/*/manifest.json"))
    status = json.loads(clone.run("trainyard", "status", "--json")[1])
    assert status["served"][0]["champion"] == champion


BAD = {
    "a missing recipe": (["nope.yaml"], "nope.yaml does not exist"),
    "a typo": ([SMALL, "--set", "train.rnk=3"], "did you mean `rank`?"),
    "no base model": ([SMALL, "--set", "base_model=nowhere"], "nowhere"),
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
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = clone.release(SMALL, "name=other", f"deploy.port={port}")
    assert code == 2, output
    assert str(port) in output
    assert "Traceback" not in output
    status = json.loads(clone.run("trainyard", "status", "--json")[1])
    assert "other" not in {model["name"] for model in status["served"] if model["ready"]}
