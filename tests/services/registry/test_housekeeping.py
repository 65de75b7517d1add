"""A sweep over a real home folder: archive, MLflow and its runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.registry.test_registration import SPEC, publish
from trainyard import files, housekeeping, storage, versions
from trainyard.errors import NotFound, Refused, Unavailable
from trainyard.process import free_port
from trainyard.recipe import Recipe, read_recipe
from trainyard.registry import Registry, open_registry, open_tracker, tracked_runs

Made = Callable[[str], str]


@pytest.fixture
def registry(home: Path) -> Registry:
    return open_registry(SPEC.registry, home)


@pytest.fixture
def made(home: Path, tmp_path: Path) -> Made:
    """Publish a version whose run is in the tracker, and return its digest."""
    recipe = read_recipe(Path("recipes/quickstart.yaml"), {"name": "support"})

    def make(letter: str) -> str:
        run = f"support-{letter}"
        files.write_json(home / "runs" / run / "recipe.json", recipe.model_dump(mode="json"))
        tracker = open_tracker(SPEC.registry, home, name="support", run_id=run)
        tracker.log_file(home / "runs" / run / "recipe.json")
        tracker.close()
        candidate = tmp_path / letter
        files.write_text(candidate / "adapter" / "weights", letter * 1000)
        files.write_text(candidate / "evaluation" / "scores.jsonl", "")
        files.write_text(candidate / "gate.json", "{}")
        runs = {"mlflow": tracker.run}
        digest = publish(home, candidate, run_id=run, tracker_runs=runs).record.digest
        return digest

    return make


def archived(home: Path) -> set[str]:
    return set(storage.list_versions(storage.open_store(SPEC.archive, home), "support"))


def test_what_no_alias_and_no_tag_names_goes_everywhere_and_the_rest_stays(
    home: Path, registry: Registry, made: Made
) -> None:
    a, b, c, d = (made(letter) for letter in "abcd")
    registry.promote("support", a, who="ci", why="first")
    registry.promote("support", b, who="ci", why="better")
    registry.keep("support", c, "the auditors want it")
    registry.set_alias("support", "candidate", b, who="ci", why="the newest")

    said = housekeeping.sweep(home, days=0)
    assert d[:12] in said.as_text()
    assert said.size > 1000
    assert not any(item.deleted for item in said.items)
    assert archived(home) == {a, b, c, d}

    done = housekeeping.sweep(home, days=0, delete=True)
    assert all(item.deleted for item in done.items), done.as_text()
    assert archived(home) == {a, b, c}
    assert {record.digest for record in registry.versions("support")} == {a, b, c}
    left = {run.run_id for run in tracked_runs(SPEC.registry, home, "support")}
    assert left == {"support-a", "support-b", "support-c"}
    assert not (home / "runs" / "support-d").exists()
    assert housekeeping.sweep(home, days=0, delete=True).items == []


def test_young_things_stay_whatever_needs_them(home: Path, made: Made) -> None:
    made("a")
    assert housekeeping.sweep(home, days=30, delete=True).items == []


def test_while_the_registry_is_away_nothing_is_deleted(home: Path, made: Made) -> None:
    digest = made("a")
    path = home / "runs" / "support-a" / "recipe.json"
    away = files.read_json(path)
    away["register"]["registry"]["uri"] = f"http://127.0.0.1:{free_port()}"
    files.write_json(path, Recipe.model_validate(away).model_dump(mode="json"))
    with pytest.raises(Unavailable):
        housekeeping.sweep(home, days=0, delete=True)
    assert archived(home) == {digest}


def test_a_version_with_an_alias_cannot_be_forgotten(registry: Registry, made: Made) -> None:
    digest = made("a")
    with pytest.raises(Refused, match="is candidate, so it stays"):
        registry.forget("support", digest)


def test_the_tag_can_be_taken_away_again(home: Path, registry: Registry, made: Made) -> None:
    digest = made("a")
    versions.keep(f"support@{digest[:12]}", home, "an audit")
    assert registry.kept("support") == {digest: "an audit"}
    versions.keep("support@candidate", home, None)
    assert registry.kept("support") == {}
    with pytest.raises(NotFound, match="000000000000"):
        registry.keep("support", "0" * 64, "a typo")


def test_the_alarm_comes_before_the_disk_is_full(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs(home).f_bavail / os.statvfs(home).f_blocks
    monkeypatch.setattr(housekeeping, "FREE_SHARE", free / 2)
    assert housekeeping.alarm(home) is None
    monkeypatch.setattr(housekeeping, "FREE_SHARE", 1.0)
    assert "free some" in (housekeeping.alarm(home / "not made yet") or "")
