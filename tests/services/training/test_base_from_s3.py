"""A base model in a bucket: fetched once, pinned by its digest; moto's server, over HTTP."""

from pathlib import Path

import boto3
import pytest

from tests.services.storage.servers import ACCESS, SECRET, moto
from trainyard.base_model import resolve
from trainyard.errors import InputError, Unavailable

BASE = Path("recipes/quickstart/base")
URL = "s3://models/team/small"


@pytest.fixture
def bucket(monkeypatch):
    with moto() as url:
        given = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="models")
        for file in BASE.iterdir():
            client.put_object(
                Bucket="models", Key=f"team/small/{file.name}", Body=file.read_bytes()
            )
        client.put_object(Bucket="models", Key="team/small/original/x.safetensors", Body=b"other")
        client.put_object(
            Bucket="models", Key="team/smaller/config.json", Body=b'{"model_type": "llama"}'
        )
        yield client
        client.close()


def test_a_base_in_a_bucket_is_pinned_by_its_digest(bucket, tmp_path):
    with pytest.raises(Unavailable, match=r"s3://models/team/small is not on this machine"):
        resolve(URL, tmp_path, download=False)
    here = resolve(str(BASE), tmp_path)
    found = resolve(f"{URL}@sha256:{here.digest[:12]}", tmp_path)
    assert (found.digest, found.config) == (here.digest, here.config)
    assert found.revision == f"sha256:{here.digest[:12]}"
    assert resolve(URL, tmp_path, download=False).path == found.path
    assert not (found.path / "x.safetensors").exists()

    config = (BASE / "config.json").read_bytes()
    bucket.put_object(Bucket="models", Key="team/small/config.json", Body=config + b"\n")
    assert resolve(URL, tmp_path).digest != here.digest
    with pytest.raises(InputError, match=rf"base_model pins {here.digest[:12]}: somebody changed"):
        resolve(f"{URL}@sha256:{here.digest}", tmp_path)


def test_what_is_no_model_in_a_bucket_is_refused(bucket, tmp_path):
    with pytest.raises(InputError, match=r"s3://models/none: no file of a model there"):
        resolve("s3://models/none", tmp_path)
    with pytest.raises(InputError, match=r"lacks model.safetensors"):
        resolve("s3://models/team/smaller", tmp_path)
    with pytest.raises(InputError, match=r"name a folder, owner/name@revision"):
        resolve(f"{URL}@sha256:abc", tmp_path)
