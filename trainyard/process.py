"""Processes we start: they die with us, or are found, recognised and ended later."""

import ctypes
import signal
import socket
import sys

import psutil
from pydantic import BaseModel

_PR_SET_PDEATHSIG = 1


class ProcessRecord(BaseModel):
    """A process that outlives us; its start time tells it from a later one with its id."""

    pid: int
    started: float
    """Seconds since the epoch, as the kernel reports it."""
    name: str = ""


def die_with_parent() -> None:
    """For `preexec_fn`: ask Linux to end this child when the thread that started it is gone.

    Elsewhere it does nothing, and a killed parent leaves the child to end on its own.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def record(pid: int, name: str = "") -> ProcessRecord:
    return ProcessRecord(pid=pid, started=psutil.Process(pid).create_time(), name=name)


def is_alive(process: ProcessRecord) -> bool:
    """Whether exactly this process still runs: a zombie, or a reused id, does not count."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.started) < 1.0
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(process: ProcessRecord, *, grace_s: float = 10.0) -> bool:
    """End the process and its children: SIGTERM, then SIGKILL. False if it was gone already."""
    if not is_alive(process):
        return False
    root = psutil.Process(process.pid)
    family = [root, *root.children(recursive=True)]
    root.terminate()
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for survivor in alive:
        survivor.kill()
    psutil.wait_procs(alive, timeout=5)
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on now; somebody else may still take it first."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_in_use(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
