"""What goes wrong with an S3 archive is one sentence: what was found, what to do."""

import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio.error import S3Error

from tests.services.storage.conftest import MIB, archive
from tests.services.storage.servers import Gateway, Proxy, rclone
from trainyard import storage, version
from trainyard.errors import InputError, Refused
from trainyard.storage.s3 import S3Store


@pytest.fixture
def gateway(moto_url: str) -> Iterator[Gateway]:
    made = Gateway(moto_url)
    yield made
    made.close()


def test_credentials_that_expire_during_an_upload_say_so_and_what_was_sent_is_kept(
    gateway: Gateway, moto_url: str, made: version.Version
) -> None:
    parts: list[str] = []

    def expire(method: str, path: str) -> tuple[int, str] | None:
        if len(parts) == 2:
            return 400, "ExpiredToken"
        if "partNumber" in path:
            parts.append(path)
        return None

    spec = archive(gateway.url, "expired", parallel=1)
    gateway.rule = expire
    with pytest.raises(InputError, match=r"env:ARCHIVE_KEY have expired; run again"):
        storage.put_tree(S3Store(spec), made.folder, made.key)
    with pytest.raises(InputError, match="have expired"):
        storage.get_tree(S3Store(spec), made.key, made.folder.parent / "back")
    assert storage.list_versions(S3Store(archive(moto_url, "expired")), "support") == []
    gateway.rule = lambda _method, _path: None
    gateway.requests.clear()
    storage.put_tree(S3Store(spec), made.folder, made.key)
    sent = [size for method, path, size in gateway.requests if "partNumber" in path]
    assert sent == [3 * MIB + 17]  # the third part alone
    assert not [path for _, path, _ in gateway.requests if path.endswith("?uploads=")]


def test_a_clock_that_is_wrong_is_named_with_the_difference(
    gateway: Gateway, made: version.Version
) -> None:
    gateway.rule = lambda _method, _path: (403, "RequestTimeTooSkewed")
    with pytest.raises(InputError, match=r"this machine's clock is \d s (ahead|behind)"):
        storage.put_tree(S3Store(archive(gateway.url, "skewed")), made.folder, made.key)


def test_a_key_that_may_not_write_is_told_from_a_wrong_one(
    gateway: Gateway, made: version.Version
) -> None:
    S3Store(archive(gateway.url, "denied")).write("models/x", b"the bucket")
    gateway.rule = lambda method, _path: (403, "AccessDenied") if method == "PUT" else None
    with pytest.raises(InputError, match=r"may not do this with s3://denied"):
        storage.put_tree(
            S3Store(archive(gateway.url, "denied", create_bucket=False)), made.folder, made.key
        )


def test_a_server_that_is_busy_is_asked_again(gateway: Gateway, made: version.Version) -> None:
    busy = iter([(503, "SlowDown"), None, (503, "SlowDown"), (500, "InternalError")])
    gateway.rule = lambda _method, _path: next(busy, None)
    store = S3Store(archive(gateway.url, "busy"))
    storage.put_tree(store, made.folder, made.key)
    assert next(busy, "all said") == "all said"
    storage.verify_tree(store, made.key)


def test_an_answer_that_is_lost_after_the_last_part_is_no_failure(
    gateway: Gateway, made: version.Version
) -> None:
    def lose(method: str, path: str) -> bool:
        if lost or method != "POST" or "uploadId" not in path:
            return False
        lost.append(path)
        return True

    lost: list[str] = []
    gateway.lose = lose
    store = S3Store(archive(gateway.url, "lost"))
    storage.put_tree(store, made.folder, made.key)
    assert lost
    storage.verify_tree(store, made.key)


def test_slow_answers_are_waited_for(moto_url: str, made: version.Version, tmp_path: Path) -> None:
    proxy = Proxy(moto_url)
    proxy.down = _late
    store = S3Store(archive(proxy.url, "slow"))
    put = storage.put_tree(store, made.folder, made.key)
    assert storage.get_tree(store, made.key, tmp_path / "back") == put
    proxy.close()


def _late(block: bytes) -> bytes:
    time.sleep(0.02)
    return block


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "little"
    folder.mkdir()
    size = ["-o", "size=16m"]
    if subprocess.run(
        ["mount", "-t", "tmpfs", *size, "tmpfs", str(folder)], check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_during_a_download_is_named_and_nothing_half_is_left(
    moto_url: str, made: version.Version, little_disk: Path
) -> None:
    store = S3Store(archive(moto_url, "full"))
    storage.put_tree(store, made.folder, made.key)
    other = little_disk / "other"

    def fill(_name: str, _done: int, _total: int) -> None:
        if not other.exists():
            other.write_bytes(bytes(8 * MIB))  # something else takes the room that was there

    with pytest.raises(InputError, match=r"the disk of .* is full; free some space"):
        storage.get_tree(store, made.key, little_disk / "back", fill)
    assert not (little_disk / "back" / "manifest.json").exists()
    assert not [path for path in (little_disk / "back").rglob(".*") if path.is_file()]
    with pytest.raises(InputError, match=r"MiB left and the version needs \d+ MiB more"):
        storage.get_tree(store, made.key, little_disk / "back")
    other.unlink()
    storage.get_tree(store, made.key, little_disk / "back")
    version.verify(little_disk / "back")


def test_a_manifest_from_a_newer_trainyard_is_refused(
    store: S3Store, made: version.Version, tmp_path: Path
) -> None:
    storage.put_tree(store, made.folder, made.key)
    manifest = store.read(f"{made.key}/manifest.json").replace(
        b'"schema_version": 1', b'"schema_version": 2'
    )
    store.write(f"{made.key}/manifest.json", manifest)
    newer = pytest.raises(InputError, match=r"has schema 2 and .* up to 1; update trainyard")
    with newer:
        storage.get_tree(store, made.key, tmp_path / "back")
    with newer:
        storage.verify_tree(store, made.key)
    with newer:
        storage.put_tree(store, made.folder, made.key)


@pytest.mark.parametrize("change", [lambda old: old[:-7], lambda old: old[:-1] + b"x"])
def test_a_large_file_that_was_changed_or_cut_is_named(
    store: S3Store, made: version.Version, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    storage.put_tree(store, made.folder, made.key)
    name = "adapter/adapter_model.safetensors"
    store.write(f"{made.key}/{name}", change((made.folder / name).read_bytes()))
    with pytest.raises(Refused, match=f"{name} was changed"):
        storage.get_tree(store, made.key, tmp_path / "back")
    with pytest.raises(Refused, match=f"{name} was changed"):
        storage.verify_tree(store, made.key)
    assert not list((tmp_path / "back").rglob("*.safetensors"))


def test_a_locked_version_cannot_be_deleted_for_its_days(
    moto_url: str, made: version.Version
) -> None:
    store = S3Store(archive(moto_url, "locked", lock_days=2))
    put = storage.put_tree(store, made.folder, made.key)
    kept = list(store.client.list_objects("locked", recursive=True, include_version=True))
    assert len(kept) == len(put.manifest.files) + 1
    for item in kept:
        with pytest.raises(S3Error, match="Access Denied"):
            store.client.remove_object("locked", item.object_name, version_id=item.version_id)
        until = store.client.stat_object("locked", item.object_name).metadata[
            "x-amz-object-lock-retain-until-date"
        ]
        days = datetime.fromisoformat(until) - datetime.now(UTC)
        assert timedelta(days=1.9) < days < timedelta(days=2.1)
    storage.verify_tree(store, made.key)


@pytest.mark.parametrize("server", ["moto_url", "rclone_url"])
def test_a_bucket_that_cannot_lock_is_refused_before_anything_is_sent(
    server: str, request: pytest.FixtureRequest, made: version.Version
) -> None:
    url = request.getfixturevalue(server)
    S3Store(archive(url, "lockless")).write("models/x", b"the bucket")
    with pytest.raises(InputError, match="made without object lock, so lock_days cannot hold"):
        storage.put_tree(S3Store(archive(url, "lockless", lock_days=2)), made.folder, made.key)
    assert [entry.key for entry in S3Store(archive(url, "lockless")).entries("")] == ["models/x"]


def test_an_authority_of_ones_own_is_trusted_only_when_named(
    tmp_path: Path, made: version.Version
) -> None:
    authority = _authority(tmp_path)
    (tmp_path / "files").mkdir()
    served = ("--cert", str(tmp_path / "server.pem"), "--key", str(tmp_path / "server.key"))
    with rclone(tmp_path / "files", *served) as url:
        with pytest.raises(InputError, match=r"not trusted .*register\.archive\.ca"):
            storage.put_tree(S3Store(archive(url, "secure")), made.folder, made.key)
        store = S3Store(archive(url, "secure", ca=str(authority)))
        put = storage.put_tree(store, made.folder, made.key)
        assert storage.get_tree(store, made.key, tmp_path / "back") == put
        other = archive(url.replace("127.0.0.1", "localhost"), "secure", ca=str(authority))
        with pytest.raises(InputError, match="not trusted"):  # the certificate is for another name
            storage.stored(S3Store(other), made.key)
    with pytest.raises(InputError, match=r"register\.archive\.ca: .* does not exist"):
        S3Store(archive(url, "secure", ca=str(tmp_path / "none.pem")))


def _authority(folder: Path) -> Path:
    """Make a certificate authority and, signed by it, `server.pem` for 127.0.0.1."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=house -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=archive -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
        " -extfile names -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem"


def test_a_file_that_is_no_authority_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(InputError, match=r"register\.archive\.ca: .*ca\.pem holds no certificate"):
        S3Store(archive("https://127.0.0.1:1", "secure", ca=str(tmp_path / "ca.pem")))
