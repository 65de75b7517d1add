import json
from pathlib import Path

import pytest

from trainyard.errors import InputError, Refused
from trainyard.run import Run


def summary_of(run: Run) -> dict[str, object]:
    found: dict[str, object] = json.loads((run.folder / "summary.json").read_text())
    return found


def test_the_summary_says_which_stage_failed_and_why(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "quickstart", "recipes/quickstart.yaml")
    with pytest.raises(Refused), run.stage("data"):
        raise Refused("3 rows leak")
    run.end(Refused("3 rows leak"))
    found = summary_of(run)
    assert (found["status"], found["failed_stage"], found["error"]) == (
        "failed",
        "data",
        "3 rows leak",
    )


def test_a_stage_is_running_until_it_ends(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "quickstart", "recipes/quickstart.yaml")
    with run.stage("train"):
        assert summary_of(run)["stages"][0]["status"] == "running"  # type: ignore[index]
    assert summary_of(run)["stages"][0]["status"] == "done"  # type: ignore[index]


def test_a_skipped_stage_says_why(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "quickstart", "recipes/quickstart.yaml")
    with run.stage("train") as stage:
        stage.skipped, stage.reason = True, "same inputs"
    assert run.summary.stages[0].status == "skipped"
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "skipped"]


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot hold runs"):
        Run.start(tmp_path / "file", "quickstart", "recipes/quickstart.yaml")
