"""A pull step of `prefect.yaml`: the working folder of a run is a checkout of the pushed commit."""

import os
import shutil
import subprocess
from pathlib import Path

from trainyard.errors import InputError, NotFound
from trainyard.rollout.state import placed_in

SOURCE, COMMIT, ADDRESS = "TRAINYARD_SOURCE", "TRAINYARD_COMMIT", "TRAINYARD_ADDRESS"
"""Environment of the run: where to fetch from, which commit, and the repository's own address."""


def at_commit(root: str) -> dict[str, str]:
    """Return the folder of a fresh or earlier checkout; its `.trainyard` is the one of `root`.

    Raises InputError without a commit, NotFound when the source does not have it.
    """
    commit, source = os.environ.get(COMMIT, ""), os.environ.get(SOURCE, "")
    if not commit or not source:
        raise InputError(
            f"{COMMIT} and {SOURCE} are not set: this deployment is started by the webhook; by "
            "hand, run another one"
        )
    home = Path(root).absolute() / ".trainyard"
    folder = home / "checkouts" / commit
    if not folder.is_dir():
        _make(source, commit, folder, home)
    return {"directory": str(folder)}


def is_served(folder: Path, home: Path) -> bool:
    """Whether a model that has traffic, or may get some, has its base model in this checkout."""
    there = folder.resolve()
    return any(placed.version.base.is_relative_to(there) for placed in placed_in(home))


def _make(source: str, commit: str, folder: Path, home: Path) -> None:
    """Make it under another name and rename it: two runs of one commit may meet here."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{commit}.{os.getpid()}")
    _git("clone", "-q", "--no-checkout", source, str(fresh))
    _git("-C", str(fresh), "checkout", "-q", "--detach", commit)
    _git("-C", str(fresh), "remote", "set-url", "origin", os.environ.get(ADDRESS, source))
    with (fresh / ".git" / "info" / "exclude").open("a", encoding="utf-8") as excluded:
        excluded.write(".trainyard\n")
    (fresh / ".trainyard").symlink_to(home)
    try:
        fresh.rename(folder)
    except OSError:
        shutil.rmtree(fresh)
        if not folder.is_dir():
            raise


def _git(*arguments: str) -> None:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, timeout=1800
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NotFound(f"git {' '.join(arguments[:3])}: {said[-1] if said else done.returncode}")
