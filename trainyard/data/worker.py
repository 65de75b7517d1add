"""A process that checks its share of the chunks, and tells of each that is done."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard.data.chunk import main
from trainyard.process import die_with_parent


@dataclass
class Worker:
    pid: int
    output: int
    """File descriptors of what it prints: a line per chunk,"""
    errors: int
    """and why it could not go on."""
    exit_code: int | None = None

    def told(self, *, wait: bool) -> int:
        """Chunks that it has finished since it was asked last; 0 when it has ended."""
        if not wait and not select.select([self.output], [], [], 0)[0]:
            return 0
        return os.read(self.output, 1 << 16).count(b"\n")

    def problem(self) -> str | None:
        """Waits for its end; why it failed, if it did."""
        with os.fdopen(os.dup(self.errors), "rb") as opened:
            lines = opened.read().decode(errors="replace").strip().splitlines()
        code = self._wait()
        if not code:
            return None
        last = lines[-1] if lines else f"it ended with {code}"
        return last if code == 2 else f"a chunk could not be checked: {last}"

    def end(self) -> None:
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()
        os.close(self.output)
        os.close(self.errors)

    def _wait(self) -> int:
        if self.exit_code is None:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code


def start(job_file: Path, share: Sequence[int]) -> Worker:
    """A fork where that is safe, which shares what is loaded here; else a new process."""
    arguments = [str(job_file), *map(str, share)]
    output, told = os.pipe()
    errors, said = os.pipe()
    try:
        if sys.platform == "linux" and threading.active_count() == 1:
            return Worker(_fork(arguments, told, said), output, errors)
        command = [sys.executable, "-m", "trainyard.data.chunk", *arguments]
        child = subprocess.Popen(command, stdout=told, stderr=said, preexec_fn=die_with_parent)
        child.returncode = 0  # we wait for it ourselves
        return Worker(child.pid, output, errors)
    finally:
        os.close(told)
        os.close(said)


def _fork(arguments: list[str], told: int, said: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child would print it again
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        sys.stdout, sys.stderr = os.fdopen(told, "w"), os.fdopen(said, "w")
        code = main(arguments)
    except BaseException as error:  # nothing of what the parent would do may happen here
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)
