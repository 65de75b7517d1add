"""Both registries at once: MLflow is the source of truth, W&B (our loopback) follows it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tests.services.registry.test_registration import publish
from tests.services.registry.wandb_state import State
from trainyard import files, registration
from trainyard.process import free_port, record
from trainyard.recipe import Recipe, read_recipe
from trainyard.recipe.register import RegisterSpec, WandbRegistry
from trainyard.registry import Registry, VersionRecord, open_registry
from trainyard.registry.mirror import open_registries
from trainyard.release import tracking
from trainyard.release.job import Job
from trainyard.run import Summary

Release = Callable[..., VersionRecord]


@pytest.fixture
def spec(wandb_spec: WandbRegistry) -> RegisterSpec:
    return RegisterSpec(mirror=wandb_spec, allow_dirty=True)


@pytest.fixture
def candidate(tmp_path: Path) -> Callable[[str], Path]:
    def make(letter: str) -> Path:
        folder = tmp_path / f"run-{letter}"
        files.write_text(folder / "adapter" / "weights", letter * 100)
        files.write_text(folder / "evaluation" / "scores.jsonl", "")
        files.write_text(folder / "gate.json", '{"verdict": "PASS"}')
        return folder

    return make


def away(spec: RegisterSpec) -> RegisterSpec:
    mirror = spec.mirror
    assert isinstance(mirror, WandbRegistry)
    url = f"http://127.0.0.1:{free_port()}"
    gone = mirror.model_copy(update={"base_url": url, "connect_timeout_s": 2})
    return spec.model_copy(update={"mirror": gone})


def both(spec: RegisterSpec, home: Path) -> tuple[Registry, Registry]:
    assert spec.mirror is not None
    return open_registry(spec.registry, home), open_registry(spec.mirror, home)


def test_a_release_is_in_both_with_the_same_aliases_and_reasons(
    spec: RegisterSpec, home: Path, candidate: Callable[[str], Path]
) -> None:
    a = publish(home, candidate("a"), spec).record
    open_registries(spec, home).promote("support", a.digest, who="erik", why="first")
    truth, mirror = both(spec, home)
    assert mirror.versions("support") == truth.versions("support") == [a]
    assert mirror.aliases("support") == truth.aliases("support")
    move = mirror.history("support")[-1]
    assert (move.alias, move.who, move.why) == ("production", "erik", "first")


def test_a_mirror_that_is_away_loses_no_release_and_is_caught_up_by_the_next(
    spec: RegisterSpec,
    home: Path,
    candidate: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = away(spec)
    records = [publish(home, candidate(letter), silent).record for letter in "ab"]
    for found in records:
        open_registries(silent, home).promote("support", found.digest, who="ci", why=found.run_id)
    assert "the mirror is behind, the next release catches up" in caplog.text
    assert registration.parked(home) == []
    truth, mirror = both(spec, home)
    assert mirror.versions("support") == []
    registration.catch_up(spec, home, "support")
    assert mirror.versions("support") == records
    assert mirror.aliases("support") == truth.aliases("support")


def test_what_somebody_moves_in_the_mirror_decides_nothing_and_is_put_right(
    spec: RegisterSpec, home: Path, candidate: Callable[[str], Path]
) -> None:
    a, b = (publish(home, candidate(letter), spec).record for letter in "ab")
    registry = open_registries(spec, home)
    registry.promote("support", a.digest, who="ci", why="first")
    _, mirror = both(spec, home)
    mirror.set_alias("support", "production", b.digest, who="someone", why="by hand")
    assert registry.resolve("support", "production") == a
    registry.follow("support")
    assert mirror.aliases("support")["production"] == a.digest


@pytest.fixture
def job(home: Path, spec: RegisterSpec) -> Job:
    """A release that ended, as its folder shows it."""
    made = read_recipe(Path("recipes/quickstart.yaml"), {"name": "support"})
    recipe = Recipe.model_validate(made.model_dump() | {"register": spec.model_dump()})
    found = Job(recipe=recipe, recipe_path="r.yaml", run_id="support-1", home=home)
    steps = [json.dumps({"step": n, "loss": 1 / n, "learning_rate": 1e-3}) for n in (1, 2, 3)]
    files.write_text(found.folder / "train" / "metrics.jsonl", "\n".join(steps))
    files.write_text(found.folder / "report.html", "<h1>the report</h1>")
    gate = {"id": "em", "metric": "exact_match", "suite": "tickets", "verdict": "PASS"}
    gate |= {"estimate": 0.9, "low": 0.8, "high": 0.95, "threshold": 0.7, "op": ">=", "n": 50}
    files.write_json(found.folder / "gate.json", {"verdict": "PASS", "gates": [gate]})
    return found


def summary(job: Job) -> Summary:
    scores = {"tickets": {"exact_match": {"candidate": 0.9, "base": 0.1}}}
    facts = {"run_id": job.run_id, "recipe": "support", "recipe_path": "r.yaml", "started": "now"}
    return Summary.model_validate(facts | {"process": record(1), "scores": scores})


def test_a_run_is_in_both_trackers_with_curve_scores_tables_plots_and_report(
    job: Job, wandb_server: State
) -> None:
    ids = tracking.run_ids(job)
    tracking.log(job, summary(job))
    client = mlflow.MlflowClient(f"sqlite:///{job.home.absolute() / 'mlflow.db'}")
    run = client.get_run(ids["mlflow"])  # the same run as the lineage names
    assert run.info.status == "FINISHED"
    assert run.data.metrics["tickets/exact_match/candidate"] == 0.9
    assert run.data.params["recipe.train.rank"] == "16"
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {p.name for p in kept.rglob("*") if p.is_file()} >= {
        "report.html",
        "gates.json",
        "loss.svg",
        "gates.svg",
    }
    rows = wandb_server.history(ids["wandb"])
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [
        1,
        0.5,
        pytest.approx(1 / 3),
    ]
    logged = {name for row in rows for name in row}
    assert {"tickets/exact_match/candidate", "gates", "report", "loss"} <= logged


def test_trackers_that_fail_change_nothing(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    (job.home / "mlflow.db").write_bytes(b"no database any more" * 1000)
    gone = away(job.recipe.register)
    assert isinstance(gone.mirror, WandbRegistry)
    skip = gone.mirror.model_copy(update={"when_down": "skip"})
    register = gone.model_copy(update={"mirror": skip})
    broken = job.model_copy(update={"recipe": job.recipe.model_copy(update={"register": register})})
    with caplog.at_level(logging.WARNING):
        assert tracking.run_ids(broken).keys() <= {"wandb"}
        tracking.log(broken, summary(broken))
    assert "the run is not in mlflow" in caplog.text
    assert "the run is not in wandb" in caplog.text
