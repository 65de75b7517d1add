"""A budget ends a release before it starts, and a training in its middle, and it goes on later."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.release import release
from tests.flows import stored
from trainyard import cost, files
from trainyard.errors import Refused
from trainyard.recipe import Recipe, read_recipe
from trainyard.release import data, training
from trainyard.release.job import Job
from trainyard.training.launcher import ATTEMPTS

PROGRAM = Path(__file__).parents[1] / "unit/training/program.py"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repository = Path.cwd()
    monkeypatch.chdir(tmp_path)
    stored.make_folder(tmp_path, repository)
    return stored.recipe_file(Path("recipe.yaml"), ["accuracy >= 0.9"], seed=1)


def keys(per_run: float) -> dict[str, object]:
    """A program that hangs at its first start, at one unit of money a second."""
    command = [sys.executable, str(PROGRAM), "hangs-once"]
    return {
        "train.backend": "command", "train.command": command, "resources.gpus": 1,
        "resources.price_per_gpu_hour": 3600, "budget.per_run": per_run,
    }  # fmt: skip


def job_of(found: Recipe) -> Job:
    return Job(recipe=found, recipe_path="recipe.yaml", run_id="stored-1", home=stored.HOME)


def test_training_ends_with_its_money_and_goes_on_with_more(recipe: Path) -> None:
    job = job_of(read_recipe(recipe, keys(per_run=3)))
    assert cost.affordable_s(job, datetime.now(UTC)) == 3
    checked = data.run(job, lambda *_: None)
    with pytest.raises(Refused, match=r"budget: it paid for .* its last checkpoint stays"):
        training.run(job, checked, lambda *_: None)
    more = job_of(read_recipe(recipe, keys(per_run=60)))
    done = training.run(more, checked, lambda *_: None)
    assert done.result.steps == 2
    attempts = files.read_json(done.folder / ATTEMPTS)["attempts"]
    assert len(attempts) == 2  # the second run went on in the folder of the first
    assert attempts[0]["reason"].startswith("it took longer than")


@pytest.mark.usefixtures("prefect_server")
def test_a_release_that_would_cost_more_does_not_start(recipe: Path) -> None:
    state = release(recipe=str(recipe), overrides=keys(per_run=0.01), return_state=True)
    assert state.is_failed()
    assert "USD and budget.per_run is 0.01: raise it" in (state.message or "")
    (summary,) = [files.read_json(p) for p in stored.HOME.glob("runs/*/summary.json")]
    assert summary["failed_stage"] == "plan"
    (entry,) = cost.entries(stored.HOME)
    assert (entry.run_id, entry.amount) == (summary["run_id"], 0.0)
