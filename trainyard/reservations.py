"""What runs that go on may still cost, set aside from their plan until the book has them.

A reservation is `<home>/runs/<run id>/reserved.json`, touched every few seconds by its run, and a
lock that the kernel frees with the run's process: who gets it has found a run that was killed.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from trainyard import files
from trainyard.recipe.base import Frozen

FILE = "reserved.json"
TOUCH_S = 10.0


class Reservation(Frozen):
    run_id: str
    recipe: str
    amount: float
    """What its plan estimates, in the currency of the prices; 0 where that is not known."""


class _Open(NamedTuple):
    lock: FileLock
    ended: threading.Event


_open: dict[Path, _Open] = {}


def make(folder: Path, reservation: Reservation) -> None:
    """Set aside, in the run's folder, until `drop`."""
    path = folder / FILE
    lock = _lock(path)
    lock.acquire(timeout=0)
    files.write_json(path, reservation.model_dump(mode="json"))
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
    _open[folder] = _Open(lock, ended)


def drop(folder: Path) -> None:
    """Give back what was set aside; nothing happens where nothing was."""
    (folder / FILE).unlink(missing_ok=True)
    if found := _open.pop(folder, None):
        found.ended.set()
        found.lock.release()


def others(home: Path, run_id: str) -> list[Reservation]:
    """Return those of all runs but this one, killed ones among them."""
    paths = (p for p in home.glob(f"runs/*/{FILE}") if p.parent.name != run_id)
    found = []
    for path in paths:
        with suppress(FileNotFoundError):  # it ended meanwhile
            found.append(Reservation.model_validate(files.read_json(path)))
    return found


def of_the_killed(home: Path) -> Iterator[tuple[Path, float]]:
    """Yield the folder of each run that was killed, and when it was last alive (Unix time)."""
    for path in home.glob(f"runs/*/{FILE}"):
        with suppress(Timeout, FileNotFoundError), _lock(path).acquire(timeout=0):
            yield path.parent, path.stat().st_mtime


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_S):
        with suppress(FileNotFoundError):
            os.utime(path)
