"""The minio client, with the calls for single parts that its public interface keeps to itself."""

import hashlib
import ssl
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.datatypes import Part

from trainyard import secrets
from trainyard.errors import InputError
from trainyard.recipe.register import S3Archive
from trainyard.storage.s3_errors import Damaged

_SHA256 = "x-amz-content-sha256"

Data = bytes | memoryview


class Sent(NamedTuple):
    etag: str
    version: str | None
    """Of the object, in a bucket that keeps versions."""


class Client(Minio):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Works for minio 7.2, whose private calls it uses."""

    def send(
        self,
        bucket: str,
        key: str,
        data: Data,
        headers: dict[str, str],
        query: dict[str, str] | None = None,
        sha256: str = "UNSIGNED-PAYLOAD",
    ) -> Sent:
        """Put an object or a part; Damaged unless the server has received these very bytes.

        What arrived is known by the ETag. Where the server encrypts with keys of its own that is
        no MD5, and TLS has to do.
        """
        signed = headers | {_SHA256: sha256}
        found = self._put_object(bucket, key, data, signed, query)
        if not _encrypted(found.http_headers) and found.etag != md5(data):
            raise Damaged(f"{key} arrived damaged")
        return Sent(found.etag, found.version_id)

    def _build_headers(
        self,
        host: str,
        headers: dict[str, str] | None = None,
        body: Data | None = None,
        creds: object = None,
    ) -> tuple[dict[str, str], datetime]:
        """Spare a body that `send` accounts for the hashing that minio would do for each request.

        Over plain HTTP that is a SHA-256, over TLS an MD5: a third of the client's CPU time.
        """
        sha256 = (headers or {}).get(_SHA256)
        if not body or not sha256:
            found: tuple[dict[str, str], datetime] = super()._build_headers(
                host, headers, body, creds
            )
            return found
        built, date = super()._build_headers(host, headers, None, creds)
        return built | {_SHA256: sha256, "Content-Length": str(len(body))}, date

    def begin(self, bucket: str, key: str, headers: dict[str, str]) -> str:
        return str(self._create_multipart_upload(bucket, key, dict(headers)))

    def send_part(self, bucket: str, key: str, upload: str, number: int, data: Data) -> str:
        query = {"partNumber": str(number), "uploadId": upload}
        return self.send(bucket, key, data, {}, query).etag

    def complete(self, bucket: str, key: str, upload: str, parts: list[Part]) -> Sent:
        found = self._complete_multipart_upload(bucket, key, upload, parts)
        return Sent((found.etag or "").strip('"'), found.version_id)

    def abort(self, bucket: str, key: str, upload: str) -> None:
        self._abort_multipart_upload(bucket, key, upload)

    def unfinished(self, bucket: str, prefix: str) -> list[tuple[str, str, datetime]]:
        """Return (key, upload, begun) of every upload that was neither completed nor aborted."""
        all_found: list[tuple[str, str, datetime]] = []
        key_marker, upload_marker = None, None
        while True:
            found = self._list_multipart_uploads(
                bucket, prefix=prefix, key_marker=key_marker, upload_id_marker=upload_marker
            )
            all_found += [(up.object_name, up.upload_id, up.initiated_time) for up in found.uploads]
            key_marker, upload_marker = found.next_key_marker, found.next_upload_id_marker
            if not found.is_truncated or not key_marker:
                return all_found

    def parts(self, bucket: str, key: str, upload: str) -> list[Part]:
        all_found: list[Part] = []
        marker = None
        while True:
            found = self._list_parts(bucket, key, upload, part_number_marker=marker)
            all_found += found.parts
            marker = found.next_part_number_marker
            if not found.is_truncated or not marker:
                return all_found


def open_client(spec: S3Archive) -> Client:
    """Raises InputError for credentials or an authority that are not there."""
    where = urlsplit(spec.endpoint)
    if spec.ca and not Path(spec.ca).is_file():
        raise InputError(f"register.archive.ca: {spec.ca} does not exist")
    try:
        ssl.create_default_context(cafile=spec.ca)
    except ssl.SSLError as error:
        raise InputError(f"register.archive.ca: {spec.ca} holds no certificate") from error
    pool = urllib3.PoolManager(
        maxsize=spec.parallel + 2,
        timeout=urllib3.Timeout(connect=10, read=120),
        retries=False,
        cert_reqs="CERT_REQUIRED",
        ca_certs=spec.ca or certifi.where(),
    )
    return Client(
        where.netloc,
        access_key=secrets.resolve(spec.access_key),
        secret_key=secrets.resolve(spec.secret_key),
        session_token=secrets.resolve(spec.session_token) if spec.session_token else None,
        secure=where.scheme == "https",
        region=spec.region,
        http_client=pool,
    )


def md5(data: Data) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _encrypted(headers: urllib3.HTTPHeaderDict) -> bool:
    """Whether the server encrypts with keys of its own, so that the ETag is no MD5."""
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )
