"""The archive: finished folders, kept by content in a folder or in any S3 bucket.

A tree is stored file by file and its manifest last, so that a crash at any byte leaves either a
finished tree or nothing that a reader can see. The same call again finishes what is half there.
A finished tree never changes. Every byte that comes back is compared with the manifest.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, assert_never

from trainyard import files
from trainyard.errors import InputError, NotFound, Refused
from trainyard.recipe.register import ArchiveSpec, FolderArchive, S3Archive
from trainyard.storage.folder import FolderStore
from trainyard.storage.store import Entry, Store, explained_disk
from trainyard.version import MANIFEST, Manifest, parse_manifest, read_manifest

__all__ = [
    "Progress",
    "Store",
    "Stored",
    "delete_tree",
    "exists",
    "get_tree",
    "list_versions",
    "open_store",
    "put_tree",
    "stored",
    "sweep",
    "verify_tree",
]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of the tree that are there, and the bytes of the tree."""

HALF_VERSION_GRACE = timedelta(hours=24)
"""A tree without a manifest may still be on its way for so long after its last file."""


class Stored(NamedTuple):
    url: str
    manifest_sha256: str
    manifest: Manifest


def open_store(spec: ArchiveSpec, home: Path) -> Store:
    """Open the archive that `spec` names. Only S3 imports its client."""
    match spec:
        case FolderArchive():
            root = Path(spec.url.removeprefix("file://")) if spec.url else home / "archive"
            return FolderStore(root.absolute())
        case S3Archive():
            from trainyard.storage.s3 import S3Store  # noqa: PLC0415  (only S3 needs its client)

            return S3Store(spec)
        case _:
            assert_never(spec)


def put_tree(store: Store, folder: Path, key: str, progress: Progress | None = None) -> Stored:
    """Store the finished folder at `key`, its manifest last, and return what is stored there.

    A finished tree at `key` stays as it is, also when it differs in other files than its adapter.
    """
    if exists(store, key):
        logger.info("%s is in the archive already", key)
        return stored(store, key)
    manifest = read_manifest(folder)
    total = sum(entry.size for entry in manifest.files.values())
    done = 0
    for name, entry in sorted(manifest.files.items(), key=lambda item: item[1].size):
        before = done

        def sent(size: int, name: str = name, before: int = before) -> None:
            if progress:
                progress(name, before + size, total)

        store.put(f"{key}/{name}", folder / name, entry.sha256, sent)
        done += entry.size
    store.write(f"{key}/{MANIFEST}", (folder / MANIFEST).read_bytes())
    found = stored(store, key)
    if found.manifest != manifest:
        raise Refused(f"{store.url}/{key}/{MANIFEST} is not what was written; the archive lost it")
    return found


def get_tree(store: Store, key: str, folder: Path, progress: Progress | None = None) -> Stored:
    """Bring the tree at `key` into `folder`, keeping the files that are there and right.

    Raises NotFound for a tree that is not finished, Refused naming a file that was changed.
    """
    found = stored(store, key)
    total = sum(entry.size for entry in found.manifest.files.values())
    _check_room(folder, total)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if path.relative_to(folder).as_posix() not in found.manifest.files:
            path.unlink()
    done = 0
    for name, entry in sorted(found.manifest.files.items()):
        target = folder / name
        if not _is(target, entry.size, entry.sha256):
            _fetch(store, f"{key}/{name}", target, entry.size, entry.sha256)
        done += entry.size
        if progress:
            progress(name, done, total)
    files.write_bytes(folder / MANIFEST, store.read(f"{key}/{MANIFEST}"))
    return found


def verify_tree(store: Store, key: str) -> Stored:
    """Read every byte of the stored tree; Refused names each file that is not as it was written."""
    found = stored(store, key)
    problems = []
    there = {entry.key.removeprefix(f"{key}/") for entry in store.entries(f"{key}/")}
    problems += [
        f"{name} was added" for name in sorted(there - set(found.manifest.files) - {MANIFEST})
    ]
    for name, entry in sorted(found.manifest.files.items()):
        if name not in there:
            problems.append(f"{name} is missing")
            continue
        digest = hashlib.sha256()
        for chunk in store.chunks(f"{key}/{name}", entry.size):
            digest.update(chunk)
        if digest.hexdigest() != entry.sha256:
            problems.append(f"{name} was changed")
    if problems:
        raise Refused(f"{found.url} is not what was archived: {'; '.join(problems)}")
    return found


def stored(store: Store, key: str) -> Stored:
    """Raises NotFound when there is no finished tree at `key`."""
    try:
        content = store.read(f"{key}/{MANIFEST}")
    except NotFound:
        raise NotFound(f"{store.url} has no finished {key}") from None
    manifest = parse_manifest(content, f"{store.url}/{key}/{MANIFEST}")
    return Stored(f"{store.url}/{key}", hashlib.sha256(content).hexdigest(), manifest)


def exists(store: Store, key: str) -> bool:
    try:
        store.read(f"{key}/{MANIFEST}")
    except NotFound:
        return False
    return True


def list_versions(store: Store, name: str) -> list[str]:
    """Return the digests of the finished versions of a model, the oldest first."""
    prefix = f"models/{name}/sha256-"
    found = [
        (entry.modified, entry.key.removeprefix(prefix).removesuffix(f"/{MANIFEST}"))
        for entry in store.entries(f"models/{name}/")
        if entry.key.startswith(prefix) and entry.key.endswith(f"/{MANIFEST}")
    ]
    return [digest for _, digest in sorted(found) if "/" not in digest]


def delete_tree(store: Store, key: str) -> int:
    """Delete the tree, its manifest first so that no part is seen; return the bytes freed."""
    store.delete(f"{key}/{MANIFEST}")
    freed = 0
    for entry in list(store.entries(f"{key}/")):
        store.delete(entry.key)
        freed += entry.size
    return freed


def sweep(
    store: Store, prefix: str = "models/", grace: timedelta = HALF_VERSION_GRACE
) -> list[str]:
    """Delete trees that no upload finished and that were last touched before `grace`."""
    before = datetime.now(UTC) - grace
    trees: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.entries(prefix):
        trees["/".join(entry.key.split("/")[:3])].append(entry)
    swept = []
    for key, entries in sorted(trees.items()):
        finished = any(entry.key == f"{key}/{MANIFEST}" for entry in entries)
        if not finished and max(entry.modified for entry in entries) < before:
            for entry in entries:
                store.delete(entry.key)
            swept.append(key)
    store.sweep(prefix, before)
    return swept


def _check_room(folder: Path, total: int) -> None:
    with explained_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if total - there > free:
        raise InputError(
            f"{folder} has {free / 2**20:.0f} MiB left and the version needs "
            f"{(total - there) / 2**20:.0f} MiB more"
        )


def _is(path: Path, size: int, sha256: str) -> bool:
    if not path.is_file() or path.is_symlink() or path.stat().st_size != size:
        return False
    return files.digest_file(path) == sha256


def _fetch(store: Store, key: str, target: Path, size: int, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with explained_disk(target), os.fdopen(handle, "wb") as file:
            for chunk in store.chunks(key, size):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise Refused(f"{store.url}/{key} was changed: its sha256 is not the manifest's")
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
