"""The archive on real S3 servers: moto for S3's semantics, rclone for signatures and real files."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.services.storage.conftest import MIB, archive
from tests.services.storage.servers import Proxy, cut_after
from trainyard import storage, version
from trainyard.errors import InputError, NotFound, Refused, Unavailable
from trainyard.process import free_port
from trainyard.storage.s3 import S3Store


@pytest.fixture
def proxy(moto_url: str) -> Iterator[Proxy]:
    made = Proxy(moto_url)
    yield made
    made.close()


def test_what_is_put_comes_back_the_same(
    store: S3Store, made: version.Version, tmp_path: Path
) -> None:
    seen: list[int] = []
    put = storage.put_tree(store, made.folder, made.key, lambda _, done, __: seen.append(done))
    assert storage.list_versions(store, "support") == [made.digest]
    assert storage.get_tree(store, made.key, tmp_path / "back") == put
    assert version.verify(tmp_path / "back") == put.manifest
    assert storage.verify_tree(store, made.key) == put
    assert seen == sorted(seen)
    assert seen[-1] > 13 * MIB


def test_a_finished_version_is_sent_once(store: S3Store, made: version.Version) -> None:
    first = storage.put_tree(store, made.folder, made.key)
    written = list(store.entries(""))
    assert storage.put_tree(store, made.folder, made.key) == first
    assert list(store.entries("")) == written


def test_a_version_without_manifest_is_not_shown_and_is_swept_after_its_grace(
    store: S3Store, made: version.Version
) -> None:
    storage.put_tree(store, made.folder, made.key)
    store.delete(f"{made.key}/manifest.json")
    assert storage.list_versions(store, "support") == []
    assert storage.sweep(store) == []
    assert storage.sweep(store, grace=timedelta(seconds=-60)) == [made.key]
    assert list(store.entries("")) == []


def test_a_changed_object_is_named(store: S3Store, made: version.Version, tmp_path: Path) -> None:
    storage.put_tree(store, made.folder, made.key)
    store.write(f"{made.key}/adapter/adapter_config.json", b'{"r": 9}')
    with pytest.raises(Refused, match=r"adapter/adapter_config\.json was changed"):
        storage.get_tree(store, made.key, tmp_path / "back")
    with pytest.raises(Refused, match=r"adapter/adapter_config\.json was changed"):
        storage.verify_tree(store, made.key)


def test_deleting_a_version_leaves_nothing(store: S3Store, made: version.Version) -> None:
    storage.put_tree(store, made.folder, made.key)
    assert storage.delete_tree(store, made.key) > 13 * MIB
    assert list(store.entries("")) == []
    with pytest.raises(NotFound):
        storage.stored(store, made.key)


@pytest.mark.parametrize("server", ["moto_url", "rclone_url"])
def test_a_part_that_is_there_is_not_sent_again(
    server: str, request: pytest.FixtureRequest, made: version.Version
) -> None:
    direct = request.getfixturevalue(server)
    proxy = Proxy(direct)
    request.addfinalizer(proxy.close)
    spec = archive(proxy.url, "resumed", parallel=1)
    store = S3Store(spec)
    proxy.up = cut_after(8 * MIB)  # the first part and a half
    with pytest.raises(Unavailable, match="did not answer"):
        storage.put_tree(store, made.folder, made.key)
    assert storage.list_versions(S3Store(archive(direct, "resumed")), "support") == []
    proxy.up, proxy.passed_up = None, 0
    storage.put_tree(S3Store(spec), made.folder, made.key)
    assert proxy.passed_up < 9 * MIB
    storage.verify_tree(S3Store(archive(direct, "resumed")), made.key)


def test_an_unfinished_upload_is_swept_after_its_grace(
    moto_url: str, made: version.Version
) -> None:
    # on moto alone: rclone lists unfinished uploads by exact key only
    store = S3Store(archive(moto_url, "swept"))
    store.write("models/x", b"the bucket")
    name = f"team/{made.key}/adapter/adapter_model.safetensors"
    upload = store.client.begin(store.bucket, name, {})
    store.client.send_part(store.bucket, name, upload, 1, b"half" * MIB)
    # moto says that every upload began in 2010
    assert store.sweep("models/", datetime(2000, 1, 1, tzinfo=UTC)) == 0
    assert store.sweep("models/", datetime.now(UTC) + timedelta(hours=1)) == 1
    assert list(store.client.unfinished(store.bucket, "")) == []


def test_an_upload_goes_through_a_connection_that_breaks_now_and_then(
    proxy: Proxy, made: version.Version
) -> None:
    store = S3Store(archive(proxy.url, "flaky"))
    store.write("models/x", b"the bucket")
    count = [0]

    def now_and_then(block: bytes) -> bytes:
        count[0] += 1
        if count[0] in {40, 130}:
            raise ConnectionResetError
        return block

    proxy.up = now_and_then
    put = storage.put_tree(store, made.folder, made.key)
    assert count[0] > 130
    assert storage.verify_tree(store, made.key) == put


def test_a_download_goes_through_a_connection_that_breaks(
    proxy: Proxy, made: version.Version, tmp_path: Path
) -> None:
    store = S3Store(archive(proxy.url, "flaky-down"))
    storage.put_tree(store, made.folder, made.key)
    count = [0]

    def once(block: bytes) -> bytes:
        count[0] += 1
        if count[0] == 60:
            raise ConnectionResetError
        return block

    proxy.down = once
    storage.get_tree(store, made.key, tmp_path / "back")
    assert count[0] > 60
    version.verify(tmp_path / "back")


def test_a_byte_changed_on_the_way_up_is_sent_again(
    proxy: Proxy, moto_url: str, made: version.Version
) -> None:
    store = S3Store(archive(proxy.url, "corrupt-up", parallel=1))
    store.write("models/x", b"the bucket")
    proxy.up, proxy.passed_up = _flip_one_byte_of_a_large_block(), 0
    storage.put_tree(store, made.folder, made.key)
    assert proxy.passed_up > 13 * MIB + 5 * MIB  # one part twice
    storage.verify_tree(S3Store(archive(moto_url, "corrupt-up")), made.key)


def test_what_always_arrives_damaged_is_never_shown(
    proxy: Proxy, moto_url: str, made: version.Version
) -> None:
    store = S3Store(archive(proxy.url, "corrupt-always"))
    store.write("models/x", b"the bucket")
    proxy.up = lambda b: b[:-1] + bytes([b[-1] ^ 1]) if len(b) > 30_000 else b
    with pytest.raises(Unavailable, match="arrived damaged"):
        storage.put_tree(store, made.folder, made.key)
    assert storage.list_versions(S3Store(archive(moto_url, "corrupt-always")), "support") == []
    proxy.up = None
    storage.put_tree(store, made.folder, made.key)
    storage.verify_tree(S3Store(archive(moto_url, "corrupt-always")), made.key)


def test_a_byte_changed_on_the_way_down_is_found(
    proxy: Proxy, made: version.Version, tmp_path: Path
) -> None:
    store = S3Store(archive(proxy.url, "corrupt-down", parallel=1))
    storage.put_tree(store, made.folder, made.key)
    proxy.down = _flip_one_byte_of_a_large_block()
    with pytest.raises(Refused, match="was changed"):
        storage.get_tree(store, made.key, tmp_path / "back")
    assert not (tmp_path / "back" / "manifest.json").exists()
    proxy.down = None
    storage.get_tree(store, made.key, tmp_path / "back")
    version.verify(tmp_path / "back")


def _flip_one_byte_of_a_large_block() -> Callable[[bytes], bytes]:
    seen = [0]

    def fault(block: bytes) -> bytes:
        seen[0] += len(block)
        if seen[0] > 2 * MIB and len(block) > 30_000:
            seen[0] = -(1 << 40)
            return block[:20_000] + bytes([block[20_000] ^ 1]) + block[20_001:]
        return block

    return fault


def test_a_wrong_key_is_named_by_its_reference(
    rclone_url: str, made: version.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE_SECRET", "not the secret of anybody at all, I fear")
    with pytest.raises(InputError, match="env:ARCHIVE_KEY") as caught:
        storage.put_tree(S3Store(archive(rclone_url, "wrong-key")), made.folder, made.key)
    assert "not the secret" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_named(moto_url: str, made: version.Version) -> None:
    missing = S3Store(archive(moto_url, "no-such-bucket", create_bucket=False))
    with pytest.raises(InputError, match="no bucket no-such-bucket"):
        storage.put_tree(missing, made.folder, made.key)


def test_a_server_that_is_away_is_unavailable(made: version.Version) -> None:
    away = S3Store(archive(f"http://127.0.0.1:{free_port()}", "away"))
    with pytest.raises(Unavailable, match=r"did not answer: .*refused"):
        storage.put_tree(away, made.folder, made.key)


def test_a_missing_key_in_the_environment_is_named(
    moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARCHIVE_KEY")
    with pytest.raises(InputError, match="ARCHIVE_KEY is not set"):
        S3Store(archive(moto_url, "any"))
