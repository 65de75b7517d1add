from datetime import timedelta
from pathlib import Path

import pytest

from trainyard import storage, version
from trainyard.errors import InputError, NotFound, Refused
from trainyard.recipe.register import FolderArchive


@pytest.fixture
def made(tmp_path: Path) -> version.Version:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 20_000)
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    digest = version.digest_of(adapter)
    return version.assemble(tmp_path / "home", "support", digest, adapter, {"lineage.json": "{}"})


@pytest.fixture
def store(tmp_path: Path) -> storage.Store:
    return storage.open_store(FolderArchive(), tmp_path / "home")


def test_what_is_put_comes_back_the_same(
    made: version.Version, store: storage.Store, tmp_path: Path
) -> None:
    put = storage.put_tree(store, made.folder, made.key)
    got = storage.get_tree(store, made.key, tmp_path / "back" / made.folder.name)
    assert put == got
    assert version.verify(tmp_path / "back" / made.folder.name) == put.manifest
    assert storage.list_versions(store, "support") == [made.digest]


def test_progress_ends_at_all_bytes(made: version.Version, store: storage.Store) -> None:
    seen: list[tuple[int, int]] = []
    storage.put_tree(
        store, made.folder, made.key, lambda _, done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == 256 * 20_000 + len('{"r": 8}') + 2


def test_a_version_without_manifest_is_not_shown_and_is_finished_by_the_next_put(
    made: version.Version, store: storage.Store
) -> None:
    storage.put_tree(store, made.folder, made.key)
    store.delete(f"{made.key}/manifest.json")
    assert storage.list_versions(store, "support") == []
    assert not storage.exists(store, made.key)
    with pytest.raises(NotFound, match="has no finished"):
        storage.stored(store, made.key)
    storage.put_tree(store, made.folder, made.key)
    assert storage.list_versions(store, "support") == [made.digest]


def test_a_finished_version_is_never_written_again(
    made: version.Version, store: storage.Store, tmp_path: Path
) -> None:
    first = storage.put_tree(store, made.folder, made.key)
    other = version.assemble(
        tmp_path / "other", "support", made.digest, made.adapter, {"lineage.json": "{ }"}
    )
    assert storage.put_tree(store, other.folder, made.key) == first


def test_a_file_changed_while_it_is_archived_leaves_no_version(
    made: version.Version, store: storage.Store
) -> None:
    (made.folder / "lineage.json").write_text("[]")
    with pytest.raises(Refused, match=r"lineage\.json changed while it was archived"):
        storage.put_tree(store, made.folder, made.key)
    assert storage.list_versions(store, "support") == []


def test_a_changed_file_in_the_archive_is_named(
    made: version.Version, store: storage.Store, tmp_path: Path
) -> None:
    storage.put_tree(store, made.folder, made.key)
    hurt = tmp_path / "home" / "archive" / made.key / "adapter" / "adapter_config.json"
    hurt.write_text('{"r": 9}')
    with pytest.raises(Refused, match=r"adapter_config\.json was changed"):
        storage.get_tree(store, made.key, tmp_path / "back")
    with pytest.raises(Refused, match=r"adapter/adapter_config\.json was changed"):
        storage.verify_tree(store, made.key)
    assert not (tmp_path / "back" / "manifest.json").exists()


def test_verify_names_added_and_missing_files(
    made: version.Version, store: storage.Store, tmp_path: Path
) -> None:
    storage.put_tree(store, made.folder, made.key)
    there = tmp_path / "home" / "archive" / made.key
    (there / "lineage.json").unlink()
    (there / "adapter" / "pickle.bin").write_bytes(b"x")
    with pytest.raises(Refused) as caught:
        storage.verify_tree(store, made.key)
    assert "adapter/pickle.bin was added" in str(caught.value)
    assert "lineage.json is missing" in str(caught.value)


def test_a_get_keeps_right_files_and_replaces_wrong_ones(
    made: version.Version, store: storage.Store, tmp_path: Path
) -> None:
    storage.put_tree(store, made.folder, made.key)
    target = tmp_path / "back"
    storage.get_tree(store, made.key, target)
    kept = (target / "adapter" / "adapter_model.safetensors").stat().st_ino
    (target / "adapter" / "adapter_config.json").write_text("{}")
    (target / "stray").write_text("from an interrupted run")
    storage.get_tree(store, made.key, target)
    assert (target / "adapter" / "adapter_model.safetensors").stat().st_ino == kept
    assert version.verify(target)


def test_sweep_removes_half_versions_only_after_their_grace(
    made: version.Version, store: storage.Store
) -> None:
    storage.put_tree(store, made.folder, made.key)
    half = version.key("support", "0" * 64)
    store.write(f"{half}/adapter/part", b"half")
    assert storage.sweep(store) == []
    assert storage.sweep(store, grace=timedelta(0)) == [half]
    assert list(store.entries(f"{half}/")) == []
    assert storage.list_versions(store, "support") == [made.digest]


def test_deleting_frees_all_of_it(made: version.Version, store: storage.Store) -> None:
    storage.put_tree(store, made.folder, made.key)
    assert storage.delete_tree(store, made.key) > 5_000_000
    assert list(store.entries("models/")) == []


def test_a_read_only_archive_says_so(made: version.Version, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the archive should be")
    store = storage.open_store(FolderArchive(url=f"file://{tmp_path / 'taken'}"), tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        storage.put_tree(store, made.folder, made.key)
