"""The init container's program, from a real S3 server: a version comes whole, or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest
from minio import Minio

from tests.services.storage.servers import ACCESS, SECRET, moto
from trainyard.recipe.register import S3Archive
from trainyard.storage import open_store
from trainyard.storage.trees import put_tree
from trainyard.version import assemble, digest_of


def test_a_version_is_brought_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    version = assemble(tmp_path / "home", "m", digest_of(adapter), adapter, {})
    with moto() as url:
        Minio(url.removeprefix("http://"), ACCESS, SECRET, secure=False).make_bucket("models")
        archive = S3Archive(kind="s3", url="s3://models/archive", endpoint=url)
        put_tree(open_store(archive, tmp_path), version.folder, version.key)

        def fetch(digest: str, into: Path) -> "subprocess.CompletedProcess[str]":
            place = ["s3://models/archive", url, "us-east-1", "m", digest, str(into)]
            return subprocess.run(
                [sys.executable, "-m", "trainyard.rollout.fetch", *place],
                capture_output=True,
                text=True,
            )

        done = fetch(version.digest, tmp_path / "models")
        assert done.returncode == 0, done.stderr
        assert digest_of(tmp_path / "models" / "adapter") == version.digest
        missing = fetch("0" * 64, tmp_path / "other")
        assert missing.returncode == 2
        assert "Traceback" not in missing.stderr
        assert not (tmp_path / "other" / "adapter").exists()
