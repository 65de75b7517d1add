"""What a running training leaves in its folder: heartbeat, a line per step, why it ended."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from trainyard.files import write_json
from trainyard.training.job import ERROR, HEARTBEAT, METRICS

MIN_BEAT_S = 0.2
"""No more heartbeats than this: a step of a tiny model takes less time than a write is worth."""


class Journal:
    """Writes a job's folder while it trains; cheap enough for every step.

    Of several processes only the first writes; any of them may say why the job ended.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.last_beat = 0.0

    def beat(self, phase: str, step: int = 0, *, force: bool = False) -> None:
        """Say that the program is alive; only `force` always reaches the file."""
        now = time.monotonic()
        if not self.writes or (not force and now - self.last_beat < MIN_BEAT_S):
            return
        self.last_beat = now
        part = self.folder / f".{HEARTBEAT}.{os.getpid()}"
        part.write_text(json.dumps({"phase": phase, "step": step, "time": time.time()}))
        part.replace(self.folder / HEARTBEAT)

    def resume_at(self, step: int) -> list[dict[str, Any]]:
        """Drop lines of later steps, which will be trained again; return those that stay."""
        file = self.folder / METRICS
        kept = [line for line in read_metrics(file) if line["step"] <= step]
        if self.writes:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        return kept

    def step(self, values: dict[str, Any]) -> None:
        if not self.writes:
            return
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def ended(self, kind: str, message: str, step: int = 0) -> None:
        write_json(self.folder / ERROR, {"kind": kind, "message": message, "step": step})


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read whole lines only: the writer may have been killed in the middle of the last."""
    found = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
