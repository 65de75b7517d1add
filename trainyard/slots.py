"""One job per GPU: a lock of the kernel for each physical GPU, held by the job and its program.

The kernel frees a lock with the last process that holds it: after kill -9 nobody has to clean up,
and there is no lease that lapses while a server is away and the job goes on. Containers share the
folder of locks (`TRAINYARD_SLOTS`); on Kubernetes `nvidia.com/gpu` hands out the GPUs.
"""

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from trainyard.errors import InputError, Unavailable
from trainyard.recipe.resources import ResourcesSpec

logger = logging.getLogger(__name__)

FOLDER = "TRAINYARD_SLOTS"
"""Environment: the folder of locks, one for all who use the GPUs of a machine."""
GPUS = "TRAINYARD_GPUS"
"""Environment: the GPUs to use, as `ID:GIB,ID:GIB`, where nvidia-smi does not know them."""
WAIT_S = 600.0
FREE = 0.9
"""Share of a card's memory that nobody may be using: less, and somebody else works on it."""
LARGE_ENOUGH = 0.98
"""Drivers keep a little of the memory for themselves, and not always the same."""

_open_locks: set[int] = set()


class Gpu(NamedTuple):
    id: str
    """As CUDA_VISIBLE_DEVICES takes it: the UUID, which is the same in every container."""
    total_gib: float
    free_gib: float


def locks() -> tuple[int, ...]:
    """Descriptors for `pass_fds` of a program that works on the held GPUs: it holds them too."""
    return tuple(sorted(_open_locks))


def gpus() -> list[Gpu]:
    """Return the GPUs of this machine.

    Raises InputError where there is no telling, or TRAINYARD_GPUS cannot be read.
    """
    said = os.environ.get(GPUS)
    if said is not None:
        try:
            pairs = [part.strip().rsplit(":", 1) for part in said.split(",") if part.strip()]
            return [Gpu(name, float(gib), float(gib)) for name, gib in pairs]
        except ValueError:
            raise InputError(f"{GPUS} is {said!r}: write ID:GIB,ID:GIB") from None
    query = [
        "nvidia-smi",
        "--query-gpu=uuid,memory.total,memory.free",
        "--format=csv,noheader,nounits",
    ]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"resources.gpus asks for a GPU and nvidia-smi found none ({error}): run where there "
            f"is one, or name them in {GPUS}"
        ) from None
    rows = [line.split(",") for line in found.splitlines() if line.strip()]
    return [
        Gpu(name.strip(), float(total) / 1024, float(free) / 1024) for name, total, free in rows
    ]


@contextmanager
def held(
    need: ResourcesSpec, who: str, *, wait_s: float = WAIT_S, poll_s: float = 1.0
) -> Iterator[list[str]]:
    """Hold as many GPUs as `need` says, all or none, and show only them to programs started here.

    Raises InputError where this machine has too few that are large enough, Unavailable when they
    stay taken for `wait_s` seconds.
    """
    if not need.gpus:
        yield []
        return
    end = time.monotonic() + wait_s
    with ExitStack() as stack:
        while not (mine := _take(need, who, stack)):
            if time.monotonic() > end:
                taken = "; ".join(_taken(need))
                raise Unavailable(f"{need.gpus} GPUs were not free within {wait_s:.0f} s: {taken}")
            time.sleep(poll_s)
        logger.info("holding GPU %s", ", ".join(mine))
        stack.enter_context(_visible(mine))
        yield mine


def _take(need: ResourcesSpec, who: str, stack: ExitStack) -> list[str]:
    """Try once; the smallest cards that do are taken first."""
    with ExitStack() as tried:
        mine: list[str] = []
        for gpu in sorted(_suitable(need), key=lambda gpu: (gpu.total_gib, gpu.id)):
            if len(mine) < need.gpus and gpu.free_gib >= FREE * gpu.total_gib:
                mine += [gpu.id] if tried.enter_context(_locked(gpu.id, who)) else []
        if len(mine) < need.gpus:
            return []
        stack.enter_context(tried.pop_all())
        return mine


def _suitable(need: ResourcesSpec) -> list[Gpu]:
    there = gpus()
    asked = need.memory_gib or 0.0
    found = [gpu for gpu in there if gpu.total_gib >= LARGE_ENOUGH * asked]
    if len(found) < need.gpus:
        has = ", ".join(f"{gpu.id} ({gpu.total_gib:.1f} GiB)" for gpu in there) or "none"
        raise InputError(
            f"resources asks for {need.gpus} GPUs of {asked:g} GiB, and this machine has {has}"
        )
    return found


@contextmanager
def _locked(name: str, who: str) -> Iterator[bool]:
    file = os.open(_lock_file(name), os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        yield False
        return
    os.truncate(file, 0)
    os.pwrite(file, f"{who} (process {os.getpid()})".encode(), 0)
    _open_locks.add(file)
    try:
        yield True
    finally:
        _open_locks.discard(file)
        os.close(file)  # a program that still holds it keeps the lock


def folder() -> Path:
    """Return the folder of locks: every user of the machine may lock in it."""
    found = Path(os.environ.get(FOLDER) or "/run/lock/trainyard")
    if not found.is_dir():
        found.mkdir(parents=True, exist_ok=True)
        found.chmod(0o1777)
    return found


def _lock_file(name: str) -> Path:
    try:
        path = folder() / (name.replace("/", "_") + ".lock")
        if not path.exists():  # opening another user's file with O_CREAT is refused by the kernel
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            path.chmod(0o666)
    except OSError as error:
        raise Unavailable(
            f"{error.filename} cannot be made: {error.strerror}; set {FOLDER}"
        ) from None
    return path


def _taken(need: ResourcesSpec) -> list[str]:
    found = []
    for gpu in _suitable(need):
        holder = _lock_file(gpu.id).read_text() or "nobody yet"
        found.append(f"{gpu.id} has {gpu.free_gib:.1f} GiB free, last held by {holder}")
    return found


@contextmanager
def _visible(mine: list[str]) -> Iterator[None]:
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
