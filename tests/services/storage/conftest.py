"""Real servers, one of each for a module, and a version to put on them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.storage.servers import ACCESS, SECRET, moto, rclone
from trainyard import version
from trainyard.recipe.register import S3Archive
from trainyard.storage.s3 import S3Store

MIB = 1 << 20


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVE_KEY", ACCESS)
    monkeypatch.setenv("ARCHIVE_SECRET", SECRET)


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rclone(tmp_path_factory.mktemp("rclone")) as url:
        yield url


def archive(endpoint: str, bucket: str, **changes: object) -> S3Archive:
    given = {
        "kind": "s3",
        "url": f"s3://{bucket}/team",
        "endpoint": endpoint,
        "access_key": "env:ARCHIVE_KEY",
        "secret_key": "env:ARCHIVE_SECRET",
        "create_bucket": True,
        "part_mib": 5,
        "parallel": 2,
    }
    return S3Archive.model_validate(given | changes)


@pytest.fixture(params=["moto", "rclone"])
def store(request: pytest.FixtureRequest) -> S3Store:
    url = request.getfixturevalue(f"{request.param}_url")
    return S3Store(archive(url, f"bucket-{os.urandom(4).hex()}"))


@pytest.fixture
def made(tmp_path: Path) -> version.Version:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(os.urandom(13 * MIB + 17))
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    digest = version.digest_of(adapter)
    return version.assemble(tmp_path / "home", "support", digest, adapter, {"lineage.json": "{}"})
