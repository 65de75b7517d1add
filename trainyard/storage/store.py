"""What an archive's backend must do: named blobs, each there whole or not at all."""

import errno
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from trainyard.errors import InputError

SMALL = 5 << 20
"""Bytes. Files up to this size travel whole, several at once; 5 MiB is S3's smallest part."""

PIECE = 1 << 20
"""Bytes that are read, hashed and written at once."""

CHECKPOINTS = "checkpoints/"
"""Keys below this prefix are temporary: mirrored checkpoints of trainings under way."""

T = TypeVar("T")


class Entry(NamedTuple):
    key: str
    size: int
    modified: datetime


class Store(Protocol):
    """Named blobs. A blob appears whole under its key or not at all. Safe to use by threads."""

    url: str
    parallel: int
    """Small files that are worth sending at once."""

    def has(self, key: str, size: int, sha256: str) -> bool:
        """Whether this very content is stored at `key`."""

    def put(self, key: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        """Store the file; Refused if its content is not `sha256`."""

    def get(self, key: str, size: int, file: BinaryIO) -> str:
        """Write the blob to the empty `file` and return its sha256; NotFound without it."""

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """Yield the blob in order; NotFound without it."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, content: bytes) -> None: ...

    def entries(self, prefix: str) -> Iterator[Entry]: ...

    def delete(self, key: str) -> None: ...

    def sweep(self, prefix: str, before: datetime) -> int:
        """Remove what uploads that stopped before `before` left behind; return how many."""


@contextmanager
def explained_disk(place: Path) -> Iterator[None]:
    """Turn the disk's own errors into ones that name the place."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise InputError(
                f"the disk of {place} is full; free some space and run again"
            ) from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST}:
            raise InputError(f"{place} cannot be written: {error.strerror}") from error
        raise


def copy(pieces: Iterable[bytes], file: BinaryIO) -> str:
    """Write the pieces to `file` and return the sha256 of them all."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def in_order(width: int, jobs: Iterator[Callable[[], T]], ahead: int | None = None) -> Iterator[T]:
    """Yield the results in the order of `jobs`; `width` at work, `ahead` more done or waiting.

    `ahead` is `width` unless given: while one job is slow, the others go on that far.
    """
    window = width + (width if ahead is None else ahead)
    with ThreadPoolExecutor(width) as pool:
        waiting = deque(pool.submit(job) for job in islice(jobs, window))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(job) for job in islice(jobs, 1))
        finally:
            pool.shutdown(cancel_futures=True)
