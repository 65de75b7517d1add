"""`s3://`: the archive in a bucket, by the minio client.

Files larger than a part go up in parallel parts; an interrupted upload is found again and only the
parts that are missing are sent. Each part is compared with the ETag that the server computed.
Needs neither tags nor versioning nor conditional writes of the server.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.error import InvalidResponseError, S3Error, ServerError

from trainyard import secrets
from trainyard.errors import InputError, Refused, Unavailable
from trainyard.recipe.register import S3Archive
from trainyard.storage.s3_errors import (
    MISSING,
    NO_RESUME,
    code_of,
    explain,
    heals,
    is_distrust,
    short,
)
from trainyard.storage.store import Entry

logger = logging.getLogger(__name__)

_ANSWERED = (S3Error, ServerError, InvalidResponseError)
_ATTEMPTS = 4
_ONE_PUT_MIB = 5
_MOST_PARTS = 10_000

T = TypeVar("T")


class _Client(Minio):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Minio with the calls for single parts that its public interface keeps to itself (7.2)."""

    def begin(self, bucket: str, key: str, sha256: str) -> str:
        return str(self._create_multipart_upload(bucket, key, {"x-amz-meta-sha256": sha256}))

    def send_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        return str(self._upload_part(bucket, key, data, None, upload, number))

    def complete(self, bucket: str, key: str, upload: str, parts: list[Part]) -> str | None:
        """Return the ETag of the whole; None when the answer has none."""
        etag = self._complete_multipart_upload(bucket, key, upload, parts).etag
        return str(etag).strip('"') if etag else None

    def abort(self, bucket: str, key: str, upload: str) -> None:
        self._abort_multipart_upload(bucket, key, upload)

    def send_whole(self, bucket: str, key: str, data: bytes, sha256: str) -> str:
        headers = {"Content-Type": "application/octet-stream", "x-amz-meta-sha256": sha256}
        return str(self._put_object(bucket, key, data, headers).etag)

    def unfinished(self, bucket: str, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        """Yield (key, upload, begun) of every upload that was neither completed nor aborted."""
        key_marker, upload_marker = None, None
        while True:
            found = self._list_multipart_uploads(
                bucket, prefix=prefix, key_marker=key_marker, upload_id_marker=upload_marker
            )
            for upload in found.uploads:
                yield upload.object_name, upload.upload_id, upload.initiated_time
            key_marker, upload_marker = found.next_key_marker, found.next_upload_id_marker
            if not found.is_truncated or not key_marker:
                return

    def parts(self, bucket: str, key: str, upload: str) -> Iterator[Part]:
        marker = None
        while True:
            found = self._list_parts(bucket, key, upload, part_number_marker=marker)
            yield from found.parts
            marker = found.next_part_number_marker
            if not found.is_truncated or not marker:
                return


class S3Store:
    def __init__(self, spec: S3Archive) -> None:
        where = urlsplit(spec.url)
        self.url = spec.url.rstrip("/")
        self.spec = spec
        self.bucket = where.netloc
        self.prefix = where.path.strip("/")
        self.client = _open(spec)
        self.bucket_checked = False

    def put(self, key: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        name, size = self._name(key), source.stat().st_size
        with self._explained(f"{self.url}/{key}"):
            self._check_bucket()
            if self._has(name, size, sha256):
                sent(size)
            elif size <= _ONE_PUT_MIB * 2**20:
                data = source.read_bytes()
                _compare(source, hashlib.sha256(data).hexdigest(), sha256)
                self._put_whole(name, data, sha256)
                sent(size)
            else:
                self._put_parts(name, source, sha256, sent)

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        name, step = self._name(key), self.spec.part_mib * 2**20

        def fetch(start: int) -> bytes:
            return self._again(lambda: self._body(name, start, min(step, size - start)))

        jobs = (partial(fetch, start) for start in range(0, size, step))
        with self._explained(f"{self.url}/{key}"):
            yield from _in_order(self.spec.parallel, jobs)

    def read(self, key: str) -> bytes:
        with self._explained(f"{self.url}/{key}"):
            return self._again(lambda: self._body(self._name(key)))

    def write(self, key: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        with self._explained(f"{self.url}/{key}"):
            self._check_bucket()
            self._put_whole(self._name(key), content, digest)

    def entries(self, prefix: str) -> Iterator[Entry]:
        with self._explained(f"{self.url}/{prefix}"):
            if not self._again(lambda: self.client.bucket_exists(self.bucket)):
                if self.spec.create_bucket:
                    return
                raise self._no_bucket()
            found = self.client.list_objects(self.bucket, prefix=self._name(prefix), recursive=True)
            for item in found:
                yield Entry(self._key(item.object_name), item.size, item.last_modified)

    def delete(self, key: str) -> None:
        with self._explained(f"{self.url}/{key}"):
            self._again(lambda: self.client.remove_object(self.bucket, self._name(key)))

    def sweep(self, prefix: str, before: datetime) -> int:
        swept = 0
        with self._explained(f"{self.url}/{prefix}"):
            for name, upload, begun in list(self._unfinished(self._name(prefix))):
                if begun < before:
                    self.client.abort(self.bucket, name, upload)
                    swept += 1
        return swept

    def _put_whole(self, name: str, data: bytes, sha256: str) -> None:
        etag = self._again(lambda: self.client.send_whole(self.bucket, name, data, sha256))
        self._check_etag(name, hashlib.md5(data, usedforsecurity=False).hexdigest(), etag)

    def _put_parts(self, name: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        upload, there = self._resumable(name)
        upload = upload or self._again(lambda: self.client.begin(self.bucket, name, sha256))
        digest = hashlib.sha256()

        def send(number: int, data: bytes) -> tuple[Part, int]:
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if there.get(number) != (md5, len(data)):
                etag = self._again(
                    lambda: self.client.send_part(self.bucket, name, upload, number, data)
                )
                self._check_etag(f"{name} part {number}", md5, etag)
            return Part(number, md5), len(data)

        def jobs() -> Iterator[Callable[[], tuple[Part, int]]]:
            step = self._part_size(source.stat().st_size)
            with source.open("rb") as file:
                for number, data in enumerate(iter(lambda: file.read(step), b""), start=1):
                    digest.update(data)
                    yield partial(send, number, data)

        parts: list[Part] = []
        done = 0
        for part, size in _in_order(self.spec.parallel, jobs()):
            parts.append(part)
            done += size
            sent(done)
        if digest.hexdigest() != sha256:
            self.client.abort(self.bucket, name, upload)
        _compare(source, digest.hexdigest(), sha256)
        etag = self._again(lambda: self.client.complete(self.bucket, name, upload, parts))
        # an answer of 200 may still carry an error; the ETag of the whole says that it does not
        whole = hashlib.md5(usedforsecurity=False)
        for part in parts:
            whole.update(bytes.fromhex(part.etag))
        if etag != f"{whole.hexdigest()}-{len(parts)}" and not self._has(name, done, sha256):
            raise Unavailable(f"{self.url}: {name} was sent whole and is not there; try again")

    def _resumable(self, name: str) -> tuple[str | None, dict[int, tuple[str, int]]]:
        """Return the youngest unfinished upload of `name` and its parts: number -> (md5, bytes)."""
        try:
            found = [
                (begun, upload) for key, upload, begun in self._unfinished(name) if key == name
            ]
            if not found:
                return None, {}
            upload = max(found)[1]
            parts = {
                part.part_number: (part.etag.strip('"'), part.size or 0)
                for part in self.client.parts(self.bucket, name, upload)
            }
        except _ANSWERED as error:
            if code_of(error) in NO_RESUME:
                return None, {}
            raise
        logger.info("%s: going on with an upload that has %d parts", name, len(parts))
        return upload, parts

    def _unfinished(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        return self.client.unfinished(self.bucket, prefix)

    def _part_size(self, size: int) -> int:
        """Bytes per part: as the recipe says, or more where the file would need too many."""
        return max(self.spec.part_mib * 2**20, -(-size // _MOST_PARTS))

    def _has(self, name: str, size: int, sha256: str) -> bool:
        try:
            found = self._again(lambda: self.client.stat_object(self.bucket, name))
        except _ANSWERED as error:
            if code_of(error) in MISSING:
                return False
            raise
        return found.size == size and (found.metadata or {}).get("x-amz-meta-sha256") == sha256

    def _body(self, name: str, start: int = 0, length: int = 0) -> bytes:
        response = self.client.get_object(self.bucket, name, offset=start, length=length)
        try:
            body: bytes = response.read()
        finally:
            response.close()
            response.release_conn()
        if length and len(body) != length:
            raise urllib3.exceptions.ProtocolError(f"{len(body)} bytes came of {length}")
        return body

    def _check_bucket(self) -> None:
        if self.bucket_checked:
            return
        if not self._again(lambda: self.client.bucket_exists(self.bucket)):
            if not self.spec.create_bucket:
                raise self._no_bucket()
            self.client.make_bucket(self.bucket)
        self.bucket_checked = True

    def _no_bucket(self) -> InputError:
        return InputError(
            f"{self.spec.endpoint} has no bucket {self.bucket}; create it, or set "
            "`create_bucket: true` in register.archive"
        )

    def _check_etag(self, what: str, md5: str, etag: str) -> None:
        if etag != md5:
            raise Unavailable(f"{self.url}: {what} arrived damaged; try again")

    def _again(self, call: Callable[[], T]) -> T:
        """Call until it is answered, four times at most: only what time heals is tried again."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except (urllib3.exceptions.HTTPError, *_ANSWERED) as error:
                if attempt == _ATTEMPTS - 1 or not heals(error):
                    raise
                logger.info("%s: %s, trying again", self.url, short(error))
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _key(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}/") if self.prefix else name

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except _ANSWERED as error:
            if code_of(error):
                raise explain(self.spec, self.bucket, what, error) from error
            raise Unavailable(f"{self.spec.endpoint} did not answer: {short(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            if is_distrust(error):
                raise InputError(
                    f"{self.spec.endpoint} shows a certificate that is not trusted "
                    f"({short(error)}); name its authority in register.archive.ca"
                ) from error
            raise Unavailable(f"{self.spec.endpoint} did not answer: {short(error)}") from error


def _open(spec: S3Archive) -> _Client:
    where = urlsplit(spec.endpoint)
    if spec.ca and not Path(spec.ca).is_file():
        raise InputError(f"register.archive.ca: {spec.ca} does not exist")
    pool = urllib3.PoolManager(
        maxsize=spec.parallel + 2,
        timeout=urllib3.Timeout(connect=10, read=120),
        retries=False,
        cert_reqs="CERT_REQUIRED",
        ca_certs=spec.ca or certifi.where(),
    )
    return _Client(
        where.netloc,
        access_key=secrets.resolve(spec.access_key),
        secret_key=secrets.resolve(spec.secret_key),
        session_token=secrets.resolve(spec.session_token) if spec.session_token else None,
        secure=where.scheme == "https",
        region=spec.region,
        http_client=pool,
    )


def _compare(source: Path, found: str, expected: str) -> None:
    if found != expected:
        raise Refused(f"{source} changed while it was archived: its sha256 is not the manifest's")


def _in_order(width: int, jobs: Iterator[Callable[[], T]]) -> Iterator[T]:
    """Yield the results in the order of `jobs`; `width` at work, and one ready to follow."""
    with ThreadPoolExecutor(width) as pool:
        waiting = deque(pool.submit(job) for job in islice(jobs, width + 1))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(job) for job in islice(jobs, 1))
        finally:
            pool.shutdown(cancel_futures=True)
