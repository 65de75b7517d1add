"""`s3://`: the archive in a bucket, by the minio client.

Files larger than SMALL go up in parallel parts; an interrupted upload is found again and only the
parts that are missing are sent. The server's MD5 of every part is compared with ours.
Needs neither tags nor conditional writes of the server; versioning only for `lock_days`.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from io import RawIOBase
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio.commonconfig import ENABLED, GOVERNANCE, Filter
from minio.datatypes import Part
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    Rule,
)
from minio.retention import Retention

from trainyard.errors import InputError, Refused, Unavailable
from trainyard.recipe.register import S3Archive
from trainyard.storage.s3_client import Sent, md5, open_client
from trainyard.storage.s3_errors import (
    FAILURES,
    MISSING,
    NO_RESUME,
    code_of,
    explain,
    heals,
    short,
)
from trainyard.storage.store import CHECKPOINTS, PIECE, SMALL, Entry, copy, in_order

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_MOST_PARTS = 10_000
_RULE = "trainyard-checkpoints"

T = TypeVar("T")


class S3Store:
    def __init__(self, spec: S3Archive) -> None:
        where = urlsplit(spec.url)
        self.url = spec.url.rstrip("/")
        self.spec = spec
        self.parallel = spec.parallel
        self.bucket = where.netloc
        self.prefix = where.path.strip("/")
        self.client = open_client(spec)
        self.bucket_checked = False
        self.checking = threading.Lock()

    def has(self, key: str, size: int, sha256: str) -> bool:
        with self._explained(f"{self.url}/{key}"):
            return self._has(self._name(key), size, sha256)

    def put(self, key: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        size = source.stat().st_size
        with self._explained(f"{self.url}/{key}"):
            self._check_bucket()
            if size <= SMALL:
                data = source.read_bytes()
                _compare(source, hashlib.sha256(data).hexdigest(), sha256)
                self._put_whole(self._name(key), data, sha256)
                sent(size)
            else:
                self._put_parts(self._name(key), source, sha256, sent)

    def get(self, key: str, size: int, file: BinaryIO) -> str:
        if size <= SMALL:
            return copy(self.chunks(key, size), file)
        name, step, place = self._name(key), self.spec.part_mib * 2**20, file.fileno()

        def fetch(start: int) -> range:
            at = start
            for piece in self._stream(name, start, min(step, size - start)):
                at += os.pwrite(place, piece, at)
            return range(start, at, PIECE)

        digest = hashlib.sha256()
        with self._explained(f"{self.url}/{key}"):
            # asked once and alone: a server that hashes a file at its first use does so once
            there = self._again(lambda: self._stat(name)).size
            if there != size:
                raise Refused(f"{self.url}/{key} was changed: {there} bytes instead of {size}")
            jobs = (partial(fetch, start) for start in range(0, size, step))
            for part in in_order(self.spec.parallel, jobs):
                for at in part:  # back from the page cache, while the next parts arrive
                    digest.update(os.pread(place, min(PIECE, part.stop - at), at))
        return digest.hexdigest()

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        with self._explained(f"{self.url}/{key}"):
            if size <= SMALL:
                yield self._again(lambda: self._body(self._name(key)))
            else:
                yield from self._stream(self._name(key), 0, size)

    def read(self, key: str) -> bytes:
        with self._explained(f"{self.url}/{key}"):
            return self._again(lambda: self._body(self._name(key)))

    def write(self, key: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        with self._explained(f"{self.url}/{key}"):
            self._check_bucket()
            self._put_whole(self._name(key), content, digest)

    def entries(self, prefix: str) -> Iterator[Entry]:
        name = self._name(prefix)
        with self._explained(f"{self.url}/{prefix}"):
            try:
                found = self._again(
                    lambda: [*self.client.list_objects(self.bucket, prefix=name, recursive=True)]
                )
            except FAILURES as error:
                if code_of(error) != "NoSuchBucket" or not self.spec.create_bucket:
                    raise
                return
        for item in found:
            yield Entry(self._key(item.object_name), item.size, item.last_modified)

    def delete(self, key: str) -> None:
        """In a bucket that keeps versions the object is hidden, and its bytes stay."""
        with self._explained(f"{self.url}/{key}"):
            self._again(lambda: self.client.remove_object(self.bucket, self._name(key)))

    def sweep(self, prefix: str, before: datetime) -> int:
        name = self._name(prefix)
        with self._explained(f"{self.url}/{prefix}"):
            found = self._again(lambda: self.client.unfinished(self.bucket, name))
            old = [(key, upload) for key, upload, begun in found if begun < before]
            for key, upload in old:
                self._again(partial(self.client.abort, self.bucket, key, upload))
        return len(old)

    def _put_whole(self, name: str, data: bytes, sha256: str) -> None:
        headers = {"Content-Type": "application/octet-stream", "x-amz-meta-sha256": sha256}
        sent = self._again(
            lambda: self.client.send(self.bucket, name, data, headers, sha256=sha256)
        )
        self._lock(name, sent)

    def _put_parts(self, name: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        upload, there = self._resumable(name)
        upload = upload or self._again(
            lambda: self.client.begin(self.bucket, name, {"x-amz-meta-sha256": sha256})
        )
        step = self._part_size(source.stat().st_size)
        free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(self.spec.parallel + 1):  # all at work, and one being read
            free.put(bytearray(step))
        digest = hashlib.sha256()

        def send(number: int, buffer: bytearray, size: int) -> tuple[Part, int]:
            data = memoryview(buffer)[:size]
            etag, known = there.get(number, ("", 0))
            try:
                if known != size or md5(data) != etag:
                    etag = self._again(
                        lambda: self.client.send_part(self.bucket, name, upload, number, data)
                    )
            finally:
                free.put(buffer)
            return Part(number, etag), size

        def jobs() -> Iterator[Callable[[], tuple[Part, int]]]:
            with source.open("rb", buffering=0) as file:
                for number in count(1):
                    buffer = free.get()
                    if not (size := _fill(file, buffer)):
                        return
                    digest.update(memoryview(buffer)[:size])
                    yield partial(send, number, buffer, size)

        parts: list[Part] = []
        done = 0
        for part, size in in_order(self.spec.parallel, jobs()):
            parts.append(part)
            done += size
            sent(done)
        if digest.hexdigest() != sha256:
            self.client.abort(self.bucket, name, upload)
        _compare(source, digest.hexdigest(), sha256)
        self._complete(name, upload, parts, done, sha256)

    def _complete(self, name: str, upload: str, parts: list[Part], size: int, sha256: str) -> None:
        try:
            sent = self._again(lambda: self.client.complete(self.bucket, name, upload, parts))
        except FAILURES as error:
            # the answer to an earlier attempt may have been lost, not the attempt
            if code_of(error) != "NoSuchUpload" or not self._has(name, size, sha256):
                raise
            sent = Sent("", None)
        # an answer of 200 may still carry an error; the ETag of the whole says that it does not
        whole = hashlib.md5(usedforsecurity=False)
        for part in parts:
            whole.update(bytes.fromhex(part.etag))
        if sent.etag != f"{whole.hexdigest()}-{len(parts)}" and not self._has(name, size, sha256):
            raise Unavailable(f"{self.url}: {name} was sent whole and is not there; try again")
        self._lock(name, sent)

    def _resumable(self, name: str) -> tuple[str | None, dict[int, tuple[str, int]]]:
        """Return the youngest unfinished upload of `name` and its parts: number -> (md5, bytes)."""
        try:
            found = self._again(lambda: self.client.unfinished(self.bucket, name))
            mine = [(begun, upload) for key, upload, begun in found if key == name]
            if not mine:
                return None, {}
            upload = max(mine)[1]
            listed = self._again(lambda: self.client.parts(self.bucket, name, upload))
        except FAILURES as error:
            if code_of(error) in NO_RESUME:
                return None, {}
            raise
        logger.info("%s: going on with an upload that has %d parts", name, len(listed))
        return upload, {part.part_number: (part.etag.strip('"'), part.size or 0) for part in listed}

    def _part_size(self, size: int) -> int:
        """Bytes per part: as the recipe says, or more where the file would need too many."""
        return max(self.spec.part_mib * 2**20, -(-size // _MOST_PARTS))

    def _has(self, name: str, size: int, sha256: str) -> bool:
        try:
            found = self._again(lambda: self._stat(name))
        except FAILURES as error:
            if code_of(error) in MISSING:
                return False
            raise
        return found.size == size and (found.metadata or {}).get("x-amz-meta-sha256") == sha256

    def _stat(self, name: str) -> Any:
        try:
            return self.client.stat_object(self.bucket, name)
        except FAILURES as error:
            # the answer to a HEAD has no body, so only a GET says why
            if code_of(error) in {"AccessDenied", "BadRequest"}:
                self._body(name, 0, 1)
            raise

    def _body(self, name: str, start: int = 0, length: int = 0) -> bytes:
        return b"".join(self._pieces(name, start, length))

    def _stream(self, name: str, start: int, length: int) -> Iterator[bytes]:
        """Yield the bytes from `start` in order; a connection that breaks is taken up there."""
        done = failed = 0
        while done < length:
            try:
                for piece in self._pieces(name, start + done, length - done):
                    done, failed = done + len(piece), 0
                    yield piece
            except FAILURES as error:
                failed += 1
                if failed == _ATTEMPTS or not heals(error):
                    raise
                logger.info("%s: %s, trying again", self.url, short(error))
                time.sleep(0.2 * 2**failed)

    def _pieces(self, name: str, start: int, length: int) -> Iterator[bytes]:
        response = self.client.get_object(self.bucket, name, offset=start, length=length)
        try:
            if length and int(response.headers.get("Content-Length", length)) > length:
                raise urllib3.exceptions.ProtocolError("more came than was asked for")
            while piece := response.read(PIECE):
                yield piece
        finally:
            response.close()
            response.release_conn()

    def _check_bucket(self) -> None:
        with self.checking:
            if self.bucket_checked:
                return
            if self.spec.create_bucket:
                self._make_bucket()
            if self.spec.lock_days:
                self._check_lock()
            if self.spec.checkpoint_days:
                self._let_expire(self.spec.checkpoint_days)
            self.bucket_checked = True

    def _make_bucket(self) -> None:
        if self._again(lambda: self.client.bucket_exists(self.bucket)):
            return
        try:
            self.client.make_bucket(self.bucket, object_lock=self.spec.lock_days is not None)
        except FAILURES as error:  # another process may have been faster
            if code_of(error) not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                raise

    def _check_lock(self) -> None:
        # a server that knows no versions would take the lock's text for the object's content
        try:
            kept = self.client.get_bucket_versioning(self.bucket).status == "Enabled"
            self.client.get_object_lock_config(self.bucket)
        except FAILURES as error:
            if heals(error) or not code_of(error):
                raise
            kept = False
        if not kept:
            raise InputError(
                f"{self.url}: the bucket was made without object lock, so lock_days cannot hold; "
                "make a bucket with it, or leave lock_days out of register.archive"
            )

    def _lock(self, name: str, sent: Sent) -> None:
        if self.spec.lock_days and not name.startswith(self._name(CHECKPOINTS)):
            until = datetime.now(UTC) + timedelta(days=self.spec.lock_days)
            rule = Retention(GOVERNANCE, until)
            self._again(
                lambda: self.client.set_object_retention(self.bucket, name, rule, sent.version)
            )

    def _let_expire(self, days: int) -> None:
        """Have the server delete old checkpoints; rules of others are never rewritten."""
        wanted = Rule(
            ENABLED,
            rule_filter=Filter(prefix=self._name(CHECKPOINTS)),
            rule_id=_RULE,
            expiration=Expiration(days=days),
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days),
        )
        try:
            found = self.client.get_bucket_lifecycle(self.bucket)
            rules = found.rules if found else []
            if [(rule.rule_id, rule.expiration.days) for rule in rules if rule.expiration] == [
                (_RULE, days)
            ]:
                return
            if all(rule.rule_id == _RULE for rule in rules):
                self.client.set_bucket_lifecycle(self.bucket, LifecycleConfig([wanted]))
                return
            why = "has lifecycle rules of its own"
        except FAILURES as error:
            if heals(error) or not code_of(error):
                raise
            why = f"takes no lifecycle rule ({code_of(error)})"
        raise InputError(
            f"{self.url}: the bucket {why}; add one there that expires "
            f"{self._name(CHECKPOINTS)} after {days} days, and leave checkpoint_days out of "
            "register.archive"
        )

    def _again(self, call: Callable[[], T]) -> T:
        """Call until it is answered, four times at most: only what time heals is tried again."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except FAILURES as error:
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
        except FAILURES as error:
            raise explain(self.spec, self.bucket, what, error) from error


def _fill(file: RawIOBase, buffer: bytearray) -> int:
    """Read until the buffer is full or the file ends; return the bytes read."""
    view, done = memoryview(buffer), 0
    while size := file.readinto(view[done:]):
        done += size
    return done


def _compare(source: Path, found: str, expected: str) -> None:
    if found != expected:
        raise Refused(f"{source} changed while it was archived: its sha256 is not the manifest's")
