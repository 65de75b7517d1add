"""What an archive's backend must do: named blobs, each there whole or not at all."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from trainyard.errors import InputError


class Entry(NamedTuple):
    key: str
    size: int
    modified: datetime


class Store(Protocol):
    """Named blobs. A blob appears whole under its key or not at all."""

    url: str

    def put(self, key: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        """Store the file unless it is there; Refused if its content is not `sha256`."""

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
