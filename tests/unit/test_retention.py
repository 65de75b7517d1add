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
LATER = datetime.now(UTC) + timedelta(days=400)


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


def test_checkpoints_of_a_finished_training_go_and_those_of_an_unfinished_one_stay_with_it(
    home: Path,
) -> None:
    for stage, finished in (("train-a", True), ("half", False)):
        folder = home / "stages" / "train" / stage
        files.write_json(folder / "checkpoints" / "checkpoint-4" / "state.json", {"step": 4})
        if not finished:
            assert not (folder / "stage.json").exists()
    items = retention.in_home(home)
    roots = [champion(home), "stages/train/half"]
    going = {item.id for item in retention.sweepable(items, roots, LATER)}
    assert "stages/train/train-a/checkpoints" in going
    assert not going & {
        "stages/train/half",
        "stages/train/half/checkpoints",
        "stages/train/train-a",
    }


def test_an_offline_run_that_was_not_sent_is_its_only_copy(home: Path) -> None:
    for name in ("offline-run-1", "offline-run-2", "run-3"):
        files.write_text(home / "wandb" / name / "run.wandb", "metrics")
    files.write_text(home / "wandb" / "offline-run-2" / "run.wandb.synced", "")
    found = {name for name in retention.in_home(home) if name.startswith("wandb/")}
    assert found == {"wandb/offline-run-2", "wandb/run-3"}


def test_a_version_in_the_archive_keeps_its_inputs_and_its_tracked_run(home: Path) -> None:
    store = storage.open_store(FolderArchive(), home)
    read = home / "train.jsonl"
    for letter in "ab":
        read.write_text(letter)
        store.put(
            f"inputs/sha256-{files.digest_file(read)}",
            read,
            files.digest_file(read),
            lambda _: None,
        )
    digests = []
    for folder in sorted((home / "versions" / "models" / "support").iterdir()):
        made = version.read_manifest(folder)
        digests.append(made.digest)
        facts = files.read_json(folder / "lineage.json")
        read.write_text(facts["run_id"][-1])
        facts["inputs"] = [{"sha256": files.digest_file(read)}]
        (folder / "lineage.json").unlink()
        files.write_json(folder / "lineage.json", facts)
        version.seal(folder, "support", made.digest)
        storage.put_tree(store, folder, version.key("support", made.digest))
    items = retention.in_archive(store, "support", {digests[0]: {"mlflow:abc"}})
    items |= retention.inputs_in_archive(store)
    assert "mlflow:abc" in items[version.key("support", digests[0])].needs
    kept = version.key("support", digests[0])
    going = [item.id for item in retention.sweepable(items, [kept], LATER)]
    assert len(going) == 2
    assert going[0] == version.key("support", digests[1])
    assert going[1].startswith("inputs/")
    retention.sweep(items, [kept], lambda item: delete(store, item.id), timedelta(0))
    assert storage.list_versions(store, "support") == [digests[0]]
    assert len(list(store.entries("inputs/"))) == 1


def delete(store: storage.Store, key: str) -> None:
    if key.startswith("models/"):
        storage.delete_tree(store, key)
    else:
        store.delete(key)


def test_a_checkout_of_a_pushed_commit_is_an_item_and_not_what_it_links_to(tmp_path: Path) -> None:
    home = tmp_path / ".trainyard"
    (home / "runs/r1").mkdir(parents=True)
    (home / "runs/r1/summary.json").write_text("{}" * 5000)
    checkout = home / "checkouts/abc"
    checkout.mkdir(parents=True)
    (checkout / "recipe.yaml").write_text("name: a")
    (checkout / ".trainyard").symlink_to(home)
    found = retention.in_home(home)
    assert found["checkouts/abc"].size == len("name: a")
    retention.delete_from_home(home, found["checkouts/abc"])
    assert not checkout.exists()
    assert (home / "runs/r1/summary.json").exists()
