"""The mirror of checkpoints in every kind of archive: whole or not shown, temporary, swept."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from tests.services.storage.conftest import MIB, archive
from trainyard import files, storage
from trainyard.errors import InputError, NotFound, Refused
from trainyard.recipe.register import FolderArchive
from trainyard.storage.s3 import S3Store
from trainyard.storage.store import Store


@pytest.fixture(params=["folder", "moto", "rclone"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return storage.open_store(FolderArchive(), tmp_path / "home")
    url = request.getfixturevalue(f"{request.param}_url")
    return S3Store(archive(url, f"bucket-{os.urandom(4).hex()}"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make(tmp_path / "checkpoint-9")


def make(folder: Path) -> Path:
    (folder / "rank-0").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(os.urandom(6 * MIB))
    (folder / "rank-0" / "rng.pt").write_bytes(b"")
    (folder / "complete.json").write_text('{"step": 9}')
    return folder


def test_a_checkpoint_comes_back_the_same_without_anything_added(
    mirror: Store, checkpoint: Path, tmp_path: Path
) -> None:
    storage.put_checkpoint(mirror, "support-1", checkpoint)
    storage.put_checkpoint(mirror, "support-1", make(tmp_path / "checkpoint-10"))
    assert storage.list_checkpoints(mirror, "support-1") == ["checkpoint-9", "checkpoint-10"]
    assert storage.list_checkpoints(mirror, "support") == []
    back = storage.get_checkpoint(mirror, "support-1", "checkpoint-9", tmp_path / "back")
    assert files.digest_files(back) == files.digest_files(checkpoint)


def test_a_half_checkpoint_is_not_shown_and_is_finished_by_the_next_put(
    mirror: Store, checkpoint: Path, tmp_path: Path
) -> None:
    storage.put_checkpoint(mirror, "run", checkpoint)
    mirror.delete("checkpoints/run/checkpoint-9/manifest.json")
    assert storage.list_checkpoints(mirror, "run") == []
    with pytest.raises(NotFound):
        storage.get_checkpoint(mirror, "run", "checkpoint-9", tmp_path / "back")
    storage.put_checkpoint(mirror, "run", checkpoint)
    assert storage.list_checkpoints(mirror, "run") == ["checkpoint-9"]


def test_a_changed_checkpoint_is_refused(mirror: Store, checkpoint: Path, tmp_path: Path) -> None:
    storage.put_checkpoint(mirror, "run", checkpoint)
    mirror.write("checkpoints/run/checkpoint-9/complete.json", b'{"step": 8}')
    with pytest.raises(Refused, match=r"complete\.json was changed"):
        storage.get_checkpoint(mirror, "run", "checkpoint-9", tmp_path / "back")


def test_a_finished_training_drops_all_or_all_but_the_newest(
    mirror: Store, checkpoint: Path, tmp_path: Path
) -> None:
    storage.put_checkpoint(mirror, "run", checkpoint)
    storage.put_checkpoint(mirror, "run", make(tmp_path / "checkpoint-10"))
    mirror.write("checkpoints/run/checkpoint-11/optimizer.pt", b"killed here")
    mirror.write("checkpoints/other/checkpoint-1/optimizer.pt", b"of another run")
    assert storage.drop_checkpoints(mirror, "run", keep=1) > 6 * MIB
    assert storage.list_checkpoints(mirror, "run") == ["checkpoint-10"]
    assert storage.drop_checkpoints(mirror, "run") > 6 * MIB
    assert [entry.key for entry in mirror.entries("checkpoints/")] == [
        "checkpoints/other/checkpoint-1/optimizer.pt"
    ]


def test_checkpoints_that_nobody_dropped_are_swept_and_versions_are_not(
    mirror: Store, checkpoint: Path
) -> None:
    storage.put_checkpoint(mirror, "run", checkpoint)
    mirror.write("models/support/sha256-1/manifest.json", b"{}")
    assert storage.sweep_checkpoints(mirror, timedelta(hours=1)) == []
    assert storage.sweep_checkpoints(mirror, timedelta(seconds=-60)) == [
        "checkpoints/run/checkpoint-9"
    ]
    assert [entry.key for entry in mirror.entries("models/")] == [
        "models/support/sha256-1/manifest.json"
    ]


def test_the_server_itself_expires_old_checkpoints_when_asked(
    moto_url: str, checkpoint: Path
) -> None:
    store = S3Store(archive(moto_url, "expiring", checkpoint_days=3))
    storage.put_checkpoint(store, "run", checkpoint)
    (rule,) = store.client.get_bucket_lifecycle("expiring").rules
    assert (rule.rule_filter.prefix, rule.expiration.days) == ("team/checkpoints/", 3)
    storage.put_checkpoint(
        S3Store(archive(moto_url, "expiring", checkpoint_days=5)), "two", checkpoint
    )
    (rule,) = store.client.get_bucket_lifecycle("expiring").rules
    assert rule.expiration.days == 5


def test_a_bucket_whose_rules_are_not_ours_keeps_them(
    moto_url: str, rclone_url: str, checkpoint: Path
) -> None:
    ours = S3Store(archive(moto_url, "ruled", checkpoint_days=3))
    ours.write("checkpoints/x", b"the bucket")
    rules = ours.client.get_bucket_lifecycle("ruled")
    rules.rules[0] = rules.rules[0].__class__(
        "Enabled",
        rule_filter=rules.rules[0].rule_filter,
        rule_id="mine",
        expiration=rules.rules[0].expiration,
    )
    ours.client.set_bucket_lifecycle("ruled", rules)
    with pytest.raises(InputError, match="has lifecycle rules of its own; add one there"):
        storage.put_checkpoint(
            S3Store(archive(moto_url, "ruled", checkpoint_days=3)), "run", checkpoint
        )
    with pytest.raises(InputError, match="takes no lifecycle rule"):
        storage.put_checkpoint(
            S3Store(archive(rclone_url, "ruleless", checkpoint_days=3)), "run", checkpoint
        )
