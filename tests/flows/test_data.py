"""The data stage: its chunks by every task runner, and its rows against the champion's."""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from tasks import data as task
from tests.services.registry.test_registration import facts
from trainyard import lineage, registration, version
from trainyard.data.check import check
from trainyard.environment import ChunkRunner
from trainyard.errors import InputError
from trainyard.recipe import Recipe, read_recipe
from trainyard.recipe.data import DataSpec, Limits
from trainyard.registry import open_registry
from trainyard.release import data
from trainyard.release.job import Job

pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # of MLflow
]

WORDS = [f"w{n}x" for n in range(4000)]


def text(seed: str, n: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n)) + "."


def rows(first: int, last: int, words: int = 60) -> list[dict[str, str]]:
    return [
        {"instruction": text(f"q{i}", 20), "output": text(f"a{i}", words)}
        for i in range(first, last)
    ]


def write(file: Path, found: list[dict[str, str]], *more: bytes) -> Path:
    lines = [*(json.dumps(row).encode() for row in found), *more]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def taken(out: Path, kept: Path) -> dict[str, bytes]:
    out.rename(kept)
    return {file.name: file.read_bytes() for file in kept.iterdir()}


@pytest.mark.parametrize("runner", ["threads", "processes", "dask", "ray"])
def test_every_task_runner_gives_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    if runner in ("dask", "ray"):
        pytest.importorskip(f"prefect_{runner}", reason=f"prefect-{runner} is not installed")
    monkeypatch.setattr("trainyard.data.check.CHUNK", 40_000)
    file = write(tmp_path / "rows.jsonl", [*rows(0, 400), *rows(7, 9)], b"{", b'{"text": 3}')
    spec, out = DataSpec(train=(str(file),), limits=Limits(min_valid=0)), tmp_path / "out"
    expected = check(spec, out, processes=1)
    alone = taken(out, tmp_path / "alone")

    where, seen = ChunkRunner(runner=runner, workers=2), []

    @flow
    def elsewhere() -> None:
        def run(job_file: Path, numbers: Any, done: Any) -> None:
            task.run_chunks(where, job_file, numbers, lambda: (seen.append(1), done())[1])

        check(spec, out, runner=run)

    elsewhere()
    assert len(seen) > 4
    assert taken(out, tmp_path / "elsewhere") == alone
    assert expected.quarantine == 4


def test_a_chunk_that_cannot_be_checked_says_so(tmp_path: Path) -> None:
    @flow
    def elsewhere() -> None:
        task.run_chunks(ChunkRunner(runner="threads"), tmp_path / "job.json", [0], lambda: None)

    with pytest.raises(FileNotFoundError, match=r"job\.json"):
        elsewhere()


@pytest.mark.skipif(find_spec("prefect_ray") is not None, reason="prefect-ray is installed")
def test_a_runner_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match="pip install prefect-ray"):
        task.task_runner(ChunkRunner(runner="ray"))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The quickstart on 300 rows of its own."""
    file = write(tmp_path / "rows.jsonl", rows(0, 300))
    found = read_recipe(Path("recipes/quickstart.yaml"))
    limits = Limits(max_share={"over_length": 1.0}, drift_refuse=9)
    spec = DataSpec(train=(str(file),), limits=limits, over_length="truncate")
    return found.model_copy(update={"data": spec})


def checked(recipe: Recipe, home: Path, run_id: str) -> data.Checked:
    job = Job(recipe=recipe, recipe_path="recipes/quickstart.yaml", run_id=run_id, home=home)

    @flow
    def release() -> data.Checked:
        return task.check(job, ChunkRunner())

    return release()


def release_champion(recipe: Recipe, home: Path, made: data.Checked) -> None:
    """Register a version that was trained on these rows, as champion."""
    adapter = home / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "adapter_config.json").write_text("{}")
    base = Job(recipe=recipe, recipe_path="", run_id="r", home=home).base()
    origin = facts(home).model_copy(
        update={
            "name": recipe.name,
            "digest": version.digest_of(adapter),
            "base_model": lineage.BaseModelFacts(
                ref=base.ref, revision=base.revision, digest=base.digest
            ),
            "data": lineage.DataFacts(digest=made.verdict.digest),
            "recipe": lineage.recipe_facts("r.yaml", "", recipe.model_dump(mode="json")),
        }
    )
    parts = {f"{data.DATA}/{name}": made.folder / name for name in data.FACTS}
    published = registration.publish(recipe.register, home, origin, adapter, parts, who="test")
    registry = open_registry(recipe.register.registry, home)
    registry.promote(recipe.name, published.record.digest, who="test", why="test")


def test_a_release_measures_its_rows_against_those_of_the_champion(
    recipe: Recipe, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first = checked(recipe, home, "one")
    assert first.verdict.drift is None
    alone = check(
        recipe.data,
        tmp_path / "alone",
        eval_sets=[suite.data for suite in recipe.evaluate.suites],
        base_model=Path(recipe.base_model),
        max_seq_len=recipe.train.max_seq_len,
    )
    for name in ("train.jsonl", "val.jsonl", "quarantine.jsonl", "facts.parquet", "report.html"):
        released = (home / "runs" / "one" / "data" / name).read_bytes()
        assert released == (alone.folder / name).read_bytes(), name
    release_champion(recipe, home, first)
    assert checked(recipe, home, "two").skipped, "the champion's own rows are not checked again"

    write(tmp_path / "rows.jsonl", [*rows(30, 300), *rows(300, 400, words=9)])
    changed = checked(recipe, home, "three")
    drift = changed.verdict.drift
    assert drift is not None
    assert (drift["previous"], drift["added"], drift["removed"]) == (first.verdict.digest, 100, 30)
    assert any(p.startswith("answer_chars moved: PSI") for p in changed.verdict.problems)
    report = (home / "runs" / "three" / "data" / "report.md").read_text()
    assert "100 rows added, 30 removed" in report
    assert checked(recipe, home, "four").skipped
