import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard import files, retention, storage, version
from trainyard.recipe.register import FolderArchive
from trainyard.retention import KEEP, Item

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Item], set[str]]:
    """Items that need earlier ones only, some young, and some roots."""
    items: dict[str, Item] = {}
    for number in range(draw(st.integers(0, 15))):
        needs = draw(st.sets(st.sampled_from(sorted(items)))) if items else set()
        age = timedelta(days=draw(st.sampled_from([1, 29, 31, 400])))
        name = f"item-{number:02}"
        items[name] = Item(id=name, size=1, modified=NOW - age, needs=frozenset(needs))
    roots = draw(st.sets(st.sampled_from(sorted(items)))) if items else set()
    return items, roots


@settings(deadline=None)
@given(graphs())
def test_nothing_that_a_root_or_a_young_item_needs_is_ever_deleted(
    graph: tuple[dict[str, Item], set[str]],
) -> None:
    items, roots = graph
    going = {item.id for item in retention.sweepable(items, roots, NOW)}
    young = {name for name, item in items.items() if NOW - item.modified < KEEP}
    assert not going & retention.reachable(items, roots | young)
    assert going == set(items) - retention.reachable(items, roots | young)


@settings(deadline=None)
@given(graphs(), st.integers(0, 15))
def test_a_sweep_that_stops_anywhere_leaves_no_item_without_its_needs_and_ends_the_same(
    graph: tuple[dict[str, Item], set[str]], stop: int
) -> None:
    items, roots = graph
    going = retention.sweepable(items, roots, NOW)
    left = {name: item for name, item in items.items() if item not in going[:stop]}
    assert all(item.needs <= left.keys() for item in left.values())
    again = {item.id for item in retention.sweepable(left, roots, NOW)}
    assert again == {item.id for item in going[stop:]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two versions, each with its run and the stages that made it; all of it is old."""
    home = tmp_path / "home"
    for letter in "ab":
        adapter = home / "stages" / "train" / f"train-{letter}" / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_text(letter * 1000)
        digest = version.digest_of(adapter)
        files.write_json(adapter.parent / "stage.json", {"result": {"digest": digest}})
        data = home / "stages" / "data" / f"data-{letter}"
        files.write_json(data / "stage.json", {"result": {"digest": letter * 64}})
        files.write_json(home / "runs" / f"run-{letter}" / "summary.json", {})
        origin = {"run_id": f"run-{letter}", "data": {"digest": letter * 64}}
        files.write_json(tmp_path / "lineage.json", origin)
        parts: dict[str, Path | str] = {"lineage.json": (tmp_path / "lineage.json").read_text()}
        version.assemble(home / "versions", "support", digest, adapter, parts)
    old = (datetime.now(UTC) - timedelta(days=40)).timestamp()
    for path in home.rglob("*"):
        os.utime(path, (old, old))
    return home


def champion(home: Path) -> str:
    kept = "runs/run-a"
    items = retention.in_home(home)
    return next(name for name, item in items.items() if kept in item.needs)


def test_a_champion_keeps_its_run_and_its_stages_and_the_rest_goes(home: Path) -> None:
    kept = champion(home)
    going = retention.sweep(
        retention.in_home(home), [kept], lambda item: retention.delete_from_home(home, item)
    )
    assert len(going) == 4
    assert set(retention.in_home(home)) == {
        kept,
        "runs/run-a",
        "stages/data/data-a",
        "stages/train/train-a",
    }
    version.verify(home / kept)


def test_a_dry_run_says_the_sizes_and_deletes_nothing(home: Path) -> None:
    before = retention.in_home(home)
    going = retention.sweep(before, [champion(home)], delete=None)
    assert sum(item.size for item in going) > 2000
    assert retention.in_home(home) == before


def test_a_half_deleted_item_is_finished_by_the_next_sweep(home: Path) -> None:
    (home / "trash" / "runs_run-z").mkdir(parents=True)
    retention.empty_trash(home)
    assert not (home / "trash").exists()


def test_only_trees_that_no_registry_names_leave_the_archive(home: Path) -> None:
    store = storage.open_store(FolderArchive(), home)
    digests = []
    for folder in sorted((home / "versions" / "models" / "support").iterdir()):
        made = version.read_manifest(folder)
        digests.append(made.digest)
        storage.put_tree(store, folder, version.key("support", made.digest))
    items = retention.in_archive(store, "support", registered={digests[0]})
    assert list(items) == [version.key("support", digests[1])]
    assert retention.sweep(items, [], delete=None) == []  # young
    retention.sweep(items, [], lambda item: storage.delete_tree(store, item.id), timedelta(0))
    assert storage.list_versions(store, "support") == [digests[0]]
