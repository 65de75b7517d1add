"""Finished folders in an archive: put, fetched, verified, listed, deleted and swept.

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
from functools import partial
from pathlib import Path
from typing import NamedTuple

from trainyard import files
from trainyard.errors import InputError, NotFound, Refused
from trainyard.storage.store import SMALL, Entry, Store, explained_disk, in_order
from trainyard.version import MANIFEST, Manifest, parse_manifest, read_manifest

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of the tree that are there, and the bytes of the tree."""

HALF_VERSION_GRACE = timedelta(hours=24)
"""A tree without a manifest may still be on its way for so long after its last file."""


class Stored(NamedTuple):
    url: str
    manifest_sha256: str
    manifest: Manifest


def put_tree(store: Store, folder: Path, key: str, progress: Progress | None = None) -> Stored:
    """Store the finished folder at `key`, its manifest last, and return what is stored there.

    A finished tree at `key` stays as it is, also when it differs in other files than its adapter.
    """
    if exists(store, key):
        logger.info("%s is in the archive already", key)
        return stored(store, key)
    manifest = read_manifest(folder)
    return put_files(store, folder, key, manifest, (folder / MANIFEST).read_bytes(), progress)


def put_files(
    store: Store,
    folder: Path,
    key: str,
    manifest: Manifest,
    content: bytes,
    progress: Progress | None = None,
) -> Stored:
    """Store what `manifest` names, then its text `content`. Files that are there stay."""
    there = {entry.key.removeprefix(f"{key}/"): entry.size for entry in store.entries(f"{key}/")}
    count = _Count(sum(entry.size for entry in manifest.files.values()), progress)

    def put(name: str, sent: Callable[[int], None] = lambda _: None) -> None:
        entry = manifest.files[name]
        place = f"{key}/{name}"
        if there.get(name) != entry.size or not store.has(place, entry.size, entry.sha256):
            store.put(place, folder / name, entry.sha256, sent)

    small, large = _by_size(manifest)
    for name in in_order(store.parallel, (partial(_named, put, name) for name in small), 64):
        count.add(name, manifest.files[name].size)
    for name in large:
        put(name, partial(count.show, name))
        count.add(name, manifest.files[name].size)
    store.write(f"{key}/{MANIFEST}", content)
    found = stored(store, key)
    if found.manifest != manifest:
        raise Refused(f"{store.url}/{key}/{MANIFEST} is not what was written; the archive lost it")
    return found


def get_tree(store: Store, key: str, folder: Path, progress: Progress | None = None) -> Stored:
    """Bring the tree at `key` into `folder`, keeping the files that are there and right.

    Raises NotFound for a tree that is not finished, Refused naming a file that was changed,
    InputError when the disk is full.
    """
    found = stored(store, key)
    entries = found.manifest.files
    count = _Count(sum(entry.size for entry in entries.values()), progress)
    _check_room(folder, count.total)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if path.relative_to(folder).as_posix() not in entries:
            path.unlink()

    def get(name: str) -> None:
        if not _is(folder / name, entries[name].size, entries[name].sha256):
            _fetch(store, f"{key}/{name}", folder / name, entries[name].size, entries[name].sha256)

    small, large = _by_size(found.manifest)
    for name in in_order(store.parallel, (partial(_named, get, name) for name in small), 64):
        count.add(name, entries[name].size)
    for name in large:
        get(name)
        count.add(name, entries[name].size)
    with explained_disk(folder):
        files.write_bytes(folder / MANIFEST, store.read(f"{key}/{MANIFEST}"))
    return found


def verify_tree(store: Store, key: str) -> Stored:
    """Read every byte of the stored tree; Refused names each file that is not as it was written."""
    found = stored(store, key)
    there = {entry.key.removeprefix(f"{key}/"): entry.size for entry in store.entries(f"{key}/")}

    def problem(name: str) -> str | None:
        entry = found.manifest.files[name]
        if name not in there:
            return f"{name} is missing"
        if there[name] != entry.size or _digest(store, f"{key}/{name}", entry.size) != entry.sha256:
            return f"{name} was changed"
        return None

    small, large = _by_size(found.manifest)
    added = sorted(there.keys() - found.manifest.files.keys() - {MANIFEST})
    checked = [*in_order(store.parallel, (partial(problem, name) for name in small), 64)]
    checked += [problem(name) for name in large]
    if problems := [*(f"{name} was added" for name in added), *sorted(filter(None, checked))]:
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
    store: Store,
    prefix: str = "models/",
    grace: timedelta = HALF_VERSION_GRACE,
    *,
    finished: bool = False,
) -> list[str]:
    """Delete trees that no upload finished and that were last touched before `grace`.

    With `finished`, delete the finished ones that are as old as well.
    """
    before = datetime.now(UTC) - grace
    trees: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.entries(prefix):
        trees["/".join(entry.key.split("/")[:3])].append(entry)
    swept = []
    for key, entries in sorted(trees.items()):
        kept = not finished and any(entry.key == f"{key}/{MANIFEST}" for entry in entries)
        if not kept and max(entry.modified for entry in entries) < before:
            delete_tree(store, key)
            swept.append(key)
    store.sweep(prefix, before)
    return swept


class _Count:
    """How much of a tree is there."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def show(self, name: str, size: int) -> None:
        """Say that `size` bytes of the file under way are there."""
        if self.progress:
            self.progress(name, self.done + size, self.total)

    def add(self, name: str, size: int) -> None:
        self.show(name, size)
        self.done += size


def _by_size(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return small files, which travel at once, and large ones, each of which travels in parts."""
    names = sorted(manifest.files, key=lambda name: (manifest.files[name].size, name))
    return (
        [name for name in names if manifest.files[name].size <= SMALL],
        [name for name in names if manifest.files[name].size > SMALL],
    )


def _named(work: Callable[[str], None], name: str) -> str:
    work(name)
    return name


def _digest(store: Store, key: str, size: int) -> str:
    digest = hashlib.sha256()
    for chunk in store.chunks(key, size):
        digest.update(chunk)
    return digest.hexdigest()


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
    with explained_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with explained_disk(target), os.fdopen(handle, "wb") as file:
            found = store.get(key, size, file)
        if found != sha256:
            raise Refused(f"{store.url}/{key} was changed: its sha256 is not the manifest's")
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
