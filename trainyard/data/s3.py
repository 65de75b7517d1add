"""Data files of an S3-compatible store. Endpoint and keys come from the AWS_* variables."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials import ChainedProvider, EnvAWSProvider, IamAwsProvider
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from trainyard.errors import InputError, Unavailable
from trainyard.files import digest_json

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def fetch(
    url: str, folder: Path, wanted: Callable[[list[str]], list[str]]
) -> list[tuple[Path, str]]:
    """Download an object, or the `wanted` ones under a prefix; (local file, its URL) by name.

    A file already in `folder` under the object's ETag is not fetched again.
    """
    bucket, prefix = _place(url)
    with _explained(url):
        client = _client()
        listed = client.list_objects(bucket, prefix=prefix, recursive=True)
        found = {o.object_name or "": (o.etag or "").strip('"') for o in listed}
        below = prefix.rstrip("/") + "/" if prefix else ""
        names = [prefix] if prefix in found else wanted([n for n in found if n.startswith(below)])
        if not names:
            raise InputError(f"{url}: no data file there ({len(found)} objects)")
        return [
            (_get(client, bucket, name, found[name], folder), f"s3://{bucket}/{name}")
            for name in sorted(names)
        ]


def fetch_folder(url: str, cache: Path, wanted: Callable[[str], bool]) -> Path:
    """Download the `wanted` objects directly below a prefix into one folder of `cache`.

    The folder is named by their ETags: unchanged ones are not fetched again.
    """
    bucket, prefix = _place(url)
    below = prefix.rstrip("/") + "/" if prefix else ""
    with _explained(url):
        client = _client()
        listed = client.list_objects(bucket, prefix=below)
        found = {
            str(o.object_name).removeprefix(below): (o.etag or "").strip('"')
            for o in listed
            if not o.is_dir and wanted(str(o.object_name))
        }
        if not found:
            raise InputError(f"{url}: no file of a model there")
        folder = cache / digest_json(sorted(found.items()))[:16]
        if folder.is_dir():
            return folder
        part = folder.with_name(f".{folder.name}.{os.getpid()}")
        for name in found:
            client.fget_object(bucket, below + name, str(part / name))
    try:
        part.replace(folder)
    except OSError:  # another process was first
        shutil.rmtree(part)
    return folder


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc, parts.path.lstrip("/")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        raise InputError(f"{url}: {error.code}: {error.message}") from None
    except (HTTPError, MinioException) as error:
        raise Unavailable(f"{url}: {_endpoint()} did not answer: {error}") from None
    except ValueError as error:
        raise InputError(f"{url} cannot be read from {_endpoint()}: {error}") from None


def _get(client: Minio, bucket: str, key: str, etag: str, folder: Path) -> Path:
    target = folder / bucket / etag / Path(key).name
    if not target.is_file():
        client.fget_object(bucket, key, str(target))
    return target


def _endpoint() -> str:
    named = (os.environ[name] for name in ENDPOINTS if os.environ.get(name))
    return next(named, "https://s3.amazonaws.com")


def _client() -> Minio:
    endpoint = urlsplit(_endpoint())
    return Minio(
        endpoint.netloc,
        credentials=ChainedProvider([EnvAWSProvider(), IamAwsProvider()]),
        secure=endpoint.scheme == "https",
        region=os.environ.get("AWS_REGION") or None,
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=60), retries=urllib3.Retry(total=2)
        ),
    )
