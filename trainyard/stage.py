"""Stages that run once: finished work is found again by the content of what went into it.

A stage's folder is `<home>/stages/<name>/<digest of its inputs>`. It is finished when `stage.json`
is there, written last, and every file that it lists still has its sha256. An unfinished folder is
the stage's own to resume or to start afresh. One process at a time works on a stage.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainyard import files

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"


class Stage:
    """One stage's folder, held by this process while `opened`."""

    def __init__(self, name: str, folder: Path, inputs: dict[str, Any]) -> None:
        self.name = name
        self.folder = folder
        self.inputs = inputs

    def finished(self) -> dict[str, Any] | None:
        """Return the result of an earlier, undamaged run with the same inputs, or None."""
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            return None
        found = files.read_json(manifest)
        for name, digest in found["files"].items():
            path = self.folder / name
            if not path.is_file() or files.digest_file(path) != digest:
                logger.warning("%s: %s is damaged, the stage runs again", self.name, path)
                return None
        result: dict[str, Any] = found["result"]
        return result

    def finish(self, result: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
        """Declare the stage finished; `outputs` are the files and folders of its result."""
        names: list[str] = []
        for output in outputs:
            path = self.folder / output
            found = path.rglob("*") if path.is_dir() else [path]
            names += [p.relative_to(self.folder).as_posix() for p in found if p.is_file()]
        manifest = {
            "stage": self.name,
            "inputs": self.inputs,
            "result": result,
            "files": files.digest_files(self.folder, names),
        }
        files.write_json(self.folder / MANIFEST, manifest)
        return result

    def publish(self, output: str, target: Path) -> None:
        """Show an output at `target`, in a run's folder, sharing its bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        files.link(self.folder / output, target)


def find(home: Path, name: str, inputs: dict[str, Any]) -> Stage:
    """Return the stage with these inputs without holding it: to look, not to write."""
    return Stage(name, home / "stages" / name / files.digest_json(inputs)[:16], inputs)


@contextmanager
def opened(home: Path, name: str, inputs: dict[str, Any]) -> Iterator[Stage]:
    """Hold the stage with these inputs, waiting for another process that is working on it."""
    stage = find(home, name, inputs)
    stage.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(stage.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: another run is at this stage with the same inputs, waiting for it", name)
        lock.acquire()
    try:
        yield stage
    finally:
        lock.release()
