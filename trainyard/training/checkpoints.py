"""Which checkpoint a training may go on from: the newest whole one of the same job."""

import os
import re
import shutil
from pathlib import Path

from trainyard.files import digest_file, digest_files, read_json, write_json

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path, step: int, identity: dict[str, str]) -> None:
    """Declare a checkpoint whole, after its bytes are on the disk."""
    for file in checkpoint.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    found = digest_files(checkpoint)
    write_json(checkpoint / MARKER, {"step": step, "identity": identity, "files": found})


def step_of(checkpoint: Path) -> int:
    found = NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else -1


def newest_complete(folder: Path) -> Path | None:
    """Return the whole checkpoint with the highest step, or None."""
    found = sorted((p for p in folder.glob("checkpoint-*") if step_of(p) >= 0), key=step_of)
    return next((p for p in reversed(found) if why_not_whole(p) is None), None)


def why_not_whole(checkpoint: Path) -> str | None:
    """Say why a checkpoint cannot be used, or None when it can."""
    marker = checkpoint / MARKER
    if not marker.is_file():
        return "it was not finished"
    for name, digest in read_json(marker)["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if digest_file(file) != digest:
            return f"{name} is damaged"
    return None


def discard_unusable(folder: Path, identity: dict[str, str]) -> list[str]:
    """Delete every checkpoint that this job must not go on from; return one reason for each."""
    reasons = []
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of):
        reason = why_not_whole(checkpoint) or _why_foreign(checkpoint, identity)
        if reason is not None:
            reasons.append(f"{checkpoint.name} is not used: {reason}")
            shutil.rmtree(checkpoint)
    return reasons


def _why_foreign(checkpoint: Path, identity: dict[str, str]) -> str | None:
    before = read_json(checkpoint / MARKER)["identity"]
    changed = [name for name in identity if before.get(name) != identity[name]]
    return f"{' and '.join(changed)} changed since" if changed else None
