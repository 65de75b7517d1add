"""Reading from an S3-compatible store: moto's server, over HTTP."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainyard.data.read import read_samples
from trainyard.errors import InputError, Unavailable

ROWS = b"".join(
    json.dumps({"prompt": f"q{i}", "completion": "a"}).encode() + b"\n" for i in range(3)
)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="train/a.jsonl", Body=ROWS)
    client.put_object(Bucket="data", Key="train/b.jsonl.gz", Body=gzip.compress(ROWS))
    client.put_object(Bucket="data", Key="train/README.md", Body=b"# not rows")
    client.put_object(Bucket="data", Key="training/c.jsonl", Body=ROWS)
    yield client
    client.close()
    server.stop()


def test_an_object_and_a_prefix_are_read(bucket: object) -> None:
    assert len(list(read_samples("s3://data/train/a.jsonl"))) == 3
    found = [row["source"]["file"] for row in read_samples("s3://data/train")]
    assert found == ["s3://data/train/a.jsonl"] * 3 + ["s3://data/train/b.jsonl.gz"] * 3


def test_what_is_not_there_is_named(bucket: object) -> None:
    with pytest.raises(InputError, match=r"s3://data/none: no data file there"):
        list(read_samples("s3://data/none"))
    with pytest.raises(InputError, match=r"s3://nothing/x: NoSuchBucket"):
        list(read_samples("s3://nothing/x"))
    with pytest.raises(InputError, match=r"s3://b/x cannot be read .*invalid bucket name b"):
        list(read_samples("s3://b/x"))


def test_an_endpoint_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9 did not answer"):
        list(read_samples("s3://data/x.jsonl"))
    command = [sys.executable, "-m", "trainyard", "check", "s3://data/x.jsonl"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
