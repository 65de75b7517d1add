"""`file://`: the archive as a folder. Blobs are written beside and moved into place."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from trainyard import files
from trainyard.errors import NotFound, Refused
from trainyard.storage.store import PIECE, Entry, copy, explained_disk

_TEMPORARY = "tmp"


class FolderStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"
        self.parallel = 2  # one reads while the other waits for the disk

    def has(self, key: str, size: int, sha256: str) -> bool:
        path = self.root / key
        return path.is_file() and path.stat().st_size == size and files.digest_file(path) == sha256

    def put(self, key: str, source: Path, sha256: str, sent: Callable[[int], None]) -> None:
        digest = hashlib.sha256()
        done = 0
        with explained_disk(self.root):
            temporary = self._temporary()
            try:
                with source.open("rb") as reader, temporary.open("wb") as writer:
                    while chunk := reader.read(PIECE):
                        digest.update(chunk)
                        writer.write(chunk)
                        done += len(chunk)
                        sent(done)
                if digest.hexdigest() != sha256:
                    raise Refused(
                        f"{source} changed while it was archived: its sha256 is not the manifest's"
                    )
                self._move(temporary, self.root / key)
            finally:
                temporary.unlink(missing_ok=True)

    def get(self, key: str, size: int, file: BinaryIO) -> str:
        return copy(self.chunks(key, size), file)

    def chunks(self, key: str, size: int) -> Iterator[bytes]:  # noqa: ARG002  (S3 needs the size)
        try:
            with (self.root / key).open("rb") as file:
                while chunk := file.read(PIECE):
                    yield chunk
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{self.url}/{key} does not exist") from None

    def read(self, key: str) -> bytes:
        return b"".join(self.chunks(key, 0))

    def write(self, key: str, content: bytes) -> None:
        with explained_disk(self.root):
            temporary = self._temporary()
            try:
                temporary.write_bytes(content)
                self._move(temporary, self.root / key)
            finally:
                temporary.unlink(missing_ok=True)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yield the blobs below the folder `prefix`, which ends in a slash."""
        for path in sorted((self.root / prefix).rglob("*")):
            if path.is_file():
                facts = path.stat()
                modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                yield Entry(path.relative_to(self.root).as_posix(), facts.st_size, modified)

    def delete(self, key: str) -> None:
        path = self.root / key
        path.unlink(missing_ok=True)
        for parent in path.relative_to(self.root).parents:
            folder = self.root / parent
            if folder == self.root or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()

    def sweep(self, prefix: str, before: datetime) -> int:  # noqa: ARG002  (one folder holds them all)
        swept = 0
        for path in (self.root / _TEMPORARY).glob("*"):
            if path.stat().st_mtime < before.timestamp():
                path.unlink(missing_ok=True)
                swept += 1
        return swept

    def _temporary(self) -> Path:
        (self.root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.root / _TEMPORARY)
        os.close(handle)
        return Path(name)

    def _move(self, temporary: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
