"""A training program while it runs: what it has told, whether it still moves, and its end."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard import slots
from trainyard.files import write_json
from trainyard.process import die_with_parent, record
from trainyard.training import distributed
from trainyard.training import job as contract
from trainyard.training.job import JobFile

GRACE_S = 8.0
"""Between SIGTERM and SIGKILL: time for a checkpoint, and within the 10 s a cancelled run has."""

DUMP_S = 0.5
PROCESS = "process.json"


@dataclass(frozen=True)
class Limits:
    """When a program counts as stalled."""

    start_s: float = 900.0
    """Until the first step ends: imports, loading, self-checks, compilation."""
    step_s: float = 300.0
    """Least time between two heartbeats after that."""
    steps: float = 20.0
    """Or this many median steps, when that is longer."""
    total_s: float = 72 * 3600.0
    """Of all attempts together."""


@dataclass
class Watched:
    """A running program and what its folder has told so far."""

    folder: Path
    limits: Limits
    begin: float
    offset: int = 0
    """Bytes of the metrics that are known."""
    seconds: float = 0.0
    """When the last known step ended, as the metrics count time."""
    step_s: list[float] = field(default_factory=list)
    beat: tuple[float, str] = (0.0, "")

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield metrics lines that are new since the last call, with the time they leave to go."""
        for line in self._new_lines():
            self.step_s.append(line["seconds"] - self.seconds)
            self.seconds = line["seconds"]
            typical = statistics.median(self.step_s[-50:])
            yield line | {"eta_s": round(typical * (line["total_steps"] - line["step"]), 1)}

    def _new_lines(self) -> list[dict[str, Any]]:
        """Parse what was appended since the last call, up to its last whole line."""
        file = self.folder / contract.METRICS
        if not file.is_file():
            return []
        with file.open("rb") as metrics:
            metrics.seek(self.offset)
            text = metrics.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def stalled(self) -> str | None:
        """Say for how long nothing has happened, when that is too long."""
        now = time.monotonic()
        text = ""
        with contextlib.suppress(OSError):
            text = (self.folder / contract.HEARTBEAT).read_text(encoding="utf-8")
        if text != self.beat[1]:
            self.beat = (now, text)
        training = '"training"' in text or '"saving"' in text
        typical = statistics.median(self.step_s[-50:]) if self.step_s else 0.0
        limit = max(self.limits.step_s, self.limits.steps * typical)
        limit = limit if training else self.limits.start_s
        silent = now - max(self.beat[0], self.begin)
        return f"no heartbeat for {silent:.0f} s (limit {limit:.0f} s)" if silent > limit else None


@contextlib.contextmanager
def running(file: JobFile, folder: Path, rank: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process group of its own, which is gone when this ends.

    `rank` is the node's: files of others than the first bear it in their names.
    """
    log_file, process_file = (
        folder / (f"node-{rank}-{name}" if rank else name) for name in (contract.LOG, PROCESS)
    )
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command_of(file, folder),
            env=environment_of(file, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
            pass_fds=slots.locks(),  # a GPU is free when its last process is gone, not before
        )
    try:
        write_json(process_file, record(process.pid, "training").model_dump())
        yield process
    finally:
        _end(process)
        process_file.unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    _signal(process, signal.SIGKILL)  # whatever of the group is left
    process.wait()


def dump_stacks(process: subprocess.Popen[bytes]) -> None:
    """Ask every process of the group to write its stacks to `stacks.txt`."""
    _signal(process, signal.SIGUSR1)
    time.sleep(DUMP_S)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def command_of(file: JobFile, folder: Path) -> list[str]:
    if file.backend == "command":
        return [*file.job.spec.command, str(folder)]
    program = ["-m", f"trainyard.training.{file.backend}", str(folder)]
    if file.job.world_size == 1:
        return [sys.executable, *program]
    return distributed.command_of(file, folder, program)


def environment_of(file: JobFile, folder: Path) -> dict[str, str]:
    threads = str(file.job.spec.threads)
    fixed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # idle threads spin otherwise, on cores that others need
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the base model is in a folder: nothing is to be fetched
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_COMPILE_LOCATION": str(folder / "unsloth_compiled"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    if file.job.gpus:
        fixed["UNSLOTH_DISABLE_CPU_FALLBACK"] = "1"
    else:
        fixed["CUDA_VISIBLE_DEVICES"] = ""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | fixed | {"PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the program before it ends us, unless the caller handles it already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
