"""Files that are whole or absent: atomic writes, content digests, linked copies."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def why(error: OSError, place: Path) -> str:
    """One sentence about a failed read or write in the folder of `place`.

    A full disk is also told from its free space: numpy and pyarrow lose the error's number.
    """
    folder = next(p for p in place.absolute().parents if p.exists())
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if full or (error.errno is None and shutil.disk_usage(folder).free < 1 << 20):
        return f"no space is left on the disk of {folder}: make room there"
    return f"{error.filename or place}: {error.strerror or error}"


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` so that readers and crashes see the old file or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    write_bytes(path, text.encode("utf-8"), mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write `value` as indented JSON; NaN and infinities are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", mode=mode)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a log that is being written: no file, or a half line, is no row yet."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


LOG_BYTES = 16 << 20


def append_row(path: Path, row: Any, most_bytes: int = LOG_BYTES) -> None:
    """Append `row` as a line to a log with one writer.

    Past `most_bytes` every second row of the older half goes: what is new is whole, and what is old
    is thinned again and again, but for the first row.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        size = file.tell()
    if size > most_bytes:
        lines = path.read_bytes().splitlines(keepends=True)
        half = len(lines) // 2
        write_bytes(path, b"".join([*lines[:half:2], *lines[half:]]))


def digest_json(value: Any) -> str:
    """sha256, in hex, of `value` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_file(path: Path) -> str:
    """sha256, in hex, of the file's bytes, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Relative POSIX path -> sha256 of every file below `folder`, or of `names` only."""
    if names is None:
        found = (path for path in folder.rglob("*") if path.is_file())
        names = (path.relative_to(folder).as_posix() for path in found)
    return {name: digest_file(folder / name) for name in sorted(names)}


def digest_tree(folder: Path) -> str:
    """One sha256, in hex, over the sorted (path, sha256) pairs of every file below `folder`."""
    return digest_json(sorted(digest_files(folder).items()))


def link(source: Path, target: Path) -> None:
    """Copy a finished file or folder, sharing its bytes where the file system can."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
