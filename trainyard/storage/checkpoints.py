"""Checkpoints of trainings under way, kept beside the archive's versions for as long as needed.

`checkpoints/<run>/<checkpoint>/` holds the files and, last, a manifest: without it a checkpoint is
not shown. These keys are temporary: a training that finishes drops its own, `sweep_checkpoints`
those of the others, and `register.archive.checkpoint_days` has an S3 server do the same.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trainyard import files
from trainyard.errors import InputError
from trainyard.storage.store import CHECKPOINTS, Store
from trainyard.storage.trees import (
    Progress,
    Stored,
    delete_tree,
    exists,
    get_tree,
    put_files,
    stored,
    sweep,
)
from trainyard.version import MANIFEST, FileEntry, Manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def put_checkpoint(
    store: Store, run: str, folder: Path, progress: Progress | None = None
) -> Stored:
    """Store the whole checkpoint in `folder` under its own name; what is there is not sent again.

    Raises Refused when a file changes meanwhile, Unavailable when the archive is away.
    """
    key = _key(run, folder.name)
    if exists(store, key):
        return stored(store, key)
    digests = files.digest_files(folder)
    if not digests or MANIFEST in digests:
        raise InputError(f"{folder} is no checkpoint: it is empty, or has a {MANIFEST} of its own")
    manifest = Manifest(
        name=run,
        digest=files.digest_json(sorted(digests.items())),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files={
            name: FileEntry(sha256=sha256, size=(folder / name).stat().st_size)
            for name, sha256 in digests.items()
        },
    )
    return put_files(store, folder, key, manifest, manifest.model_dump_json().encode(), progress)


def list_checkpoints(store: Store, run: str) -> list[str]:
    """Return the names of the run's finished checkpoints, `checkpoint-9` before `checkpoint-10`."""
    prefix = _key(run, "")
    names = [
        entry.key.removeprefix(prefix).removesuffix(f"/{MANIFEST}")
        for entry in store.entries(prefix)
        if entry.key.endswith(f"/{MANIFEST}")
    ]
    return sorted((name for name in names if "/" not in name), key=lambda name: (len(name), name))


def get_checkpoint(
    store: Store, run: str, name: str, target: Path, progress: Progress | None = None
) -> Path:
    """Bring the checkpoint into `target/name`, byte by byte what was put, and return that folder.

    Raises NotFound for one that is not finished, Refused naming a file that was changed.
    """
    get_tree(store, _key(run, name), target / name, progress)
    (target / name / MANIFEST).unlink()
    return target / name


def drop_checkpoints(store: Store, run: str, keep: int = 0) -> int:
    """Delete the run's checkpoints but for the `keep` newest; return the bytes freed."""
    names = list_checkpoints(store, run)
    freed = sum(delete_tree(store, _key(run, name)) for name in names[: len(names) - keep])
    if not keep:  # nor what a killed upload left half
        prefix = _key(run, "")
        for entry in list(store.entries(prefix)):
            store.delete(entry.key)
            freed += entry.size
        store.sweep(prefix, datetime.now(UTC))
    return freed


def sweep_checkpoints(store: Store, older: timedelta) -> list[str]:
    """Delete checkpoints, finished or not, that nothing touched for `older`; return their keys."""
    return sweep(store, CHECKPOINTS, older, finished=True)


def _key(run: str, name: str) -> str:
    for part in filter(None, (run, name)):
        if not _NAME.fullmatch(part):
            raise InputError(
                f"checkpoint {run}/{name} cannot be stored; use letters, digits, dot, dash and "
                "underscore"
            )
    return f"{CHECKPOINTS}{run}/{name}"
