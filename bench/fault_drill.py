"""Start a training, break it in five ways, and compare what each ends with.

    python -m bench.fault_drill [--backend unsloth]

Every line must show the digest of the first. About three minutes on two idle cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.small_job import small_job
from trainyard.files import read_json
from trainyard.training.job import TrainJob, TrainResult
from trainyard.training.launcher import launch
from trainyard.training.watchdog import PROCESS, Limits

STEPS = 12
SAVE_EVERY = 4
BREAK_AT = 6
LAUNCH = """
import sys
from pathlib import Path
from trainyard.training.job import TrainJob
from trainyard.training.launcher import launch
launch(TrainJob.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def whole(job: TrainJob, folder: Path) -> TrainResult:
    return launch(job, folder)


def signalled(number: int) -> Callable[[TrainJob, Path], TrainResult]:
    def run(job: TrainJob, folder: Path) -> TrainResult:
        sent = False

        def send(line: dict[str, Any]) -> None:
            nonlocal sent
            if line["step"] >= BREAK_AT and not sent:
                sent = True
                os.kill(read_json(folder / PROCESS)["pid"], number)

        return launch(job, folder, progress=send, limits=Limits(step_s=10.0))

    return run


def launcher_killed(job: TrainJob, folder: Path) -> TrainResult:
    folder.mkdir()
    (folder / "asked.json").write_text(job.model_dump_json())
    command = [sys.executable, "-c", LAUNCH, str(folder / "asked.json"), str(folder)]
    launcher = subprocess.Popen(command)
    marker = folder / "checkpoints" / f"checkpoint-{SAVE_EVERY}" / "complete.json"
    try:
        while launcher.poll() is None and not marker.exists():
            time.sleep(0.05)
    finally:
        launcher.kill()
        launcher.wait()
    return launch(job, folder)


def checkpoint_damaged(job: TrainJob, folder: Path) -> TrainResult:
    result = signalled(signal.SIGTERM)(job, folder)
    (folder / "result.json").unlink()
    newest = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
    with (newest / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    before = len(result.attempts)
    again = launch(job, folder)
    assert len(again.attempts) == before + 1
    return again


WAYS: dict[str, Callable[[TrainJob, Path], TrainResult]] = {
    "not interrupted": whole,
    "trainer SIGKILL": signalled(signal.SIGKILL),
    "trainer SIGTERM": signalled(signal.SIGTERM),
    "trainer frozen": signalled(signal.SIGSTOP),
    "launcher SIGKILL": launcher_killed,
    "checkpoint cut": checkpoint_damaged,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("unsloth", "trl"), default="unsloth")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    digests = {}
    print(f"{'what happened':18} {'starts at step':>16} {'seconds':>8}  digest")
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"max_steps": STEPS, "save_every": SAVE_EVERY, "threads": asked.threads}
        job = small_job(Path(scratch) / "in", backend=asked.backend, **settings)
        for name, way in WAYS.items():
            result = way(job, Path(scratch) / name.replace(" ", "_"))
            digests[name] = result.digest
            starts = ", ".join(str(a["from_step"]) for a in result.attempts)
            print(f"{name:18} {starts:>16} {result.seconds:8.1f}  {result.digest[:24]}", flush=True)
    equal = sum(digest == digests["not interrupted"] for digest in digests.values()) - 1
    print(json.dumps({"backend": asked.backend, "ways": len(WAYS) - 1, "equal": equal}))


if __name__ == "__main__":
    main()
