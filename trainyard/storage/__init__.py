"""The archive: finished folders, kept by content in a folder or in any S3 bucket.

`trees.py` says what holds for both, `checkpoints.py` keeps those of trainings under way.
"""

from pathlib import Path
from typing import assert_never

from trainyard.recipe.register import ArchiveSpec, FolderArchive, S3Archive
from trainyard.storage.checkpoints import (
    drop_checkpoints,
    get_checkpoint,
    list_checkpoints,
    put_checkpoint,
    sweep_checkpoints,
)
from trainyard.storage.folder import FolderStore
from trainyard.storage.store import Store
from trainyard.storage.trees import (
    Progress,
    Stored,
    delete_tree,
    exists,
    get_tree,
    list_versions,
    put_tree,
    stored,
    sweep,
    verify_tree,
)

__all__ = [
    "Progress",
    "Store",
    "Stored",
    "delete_tree",
    "drop_checkpoints",
    "exists",
    "get_checkpoint",
    "get_tree",
    "list_checkpoints",
    "list_versions",
    "open_store",
    "put_checkpoint",
    "put_tree",
    "stored",
    "sweep",
    "sweep_checkpoints",
    "verify_tree",
]


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
