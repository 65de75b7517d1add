"""A clone of the repository, released in as a user would, and what is left running in it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from tests.air_gap import without_a_network

SMALL = "tests/e2e/small.yaml"


class Clone:
    """A folder with the project's files, its own `.trainyard`, and the commands of the README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Prefect's own settings from outside would reach into another server
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.env = kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        with self.start(*arguments) as process:
            output, _ = process.communicate(timeout=900)
            return process.returncode, output

    def release(self, recipe: str = SMALL, *overrides: str) -> tuple[int, str]:
        options = [part for override in overrides for part in ("--set", override)]
        return self.run("flows.release", recipe, *options)

    def released(self) -> dict[str, Any]:
        """Return the summary of a release of the small recipe as it is, making one if need be."""
        code, output = self.release()
        assert code == 0, output
        return self.summary()

    def summaries(self) -> list[dict[str, Any]]:
        found = self.folder.glob(".trainyard/runs/*/summary.json")
        return [json.loads(p.read_text()) for p in sorted(found, key=lambda p: p.stat().st_mtime)]

    def summary(self) -> dict[str, Any]:
        return self.summaries()[-1]

    def statuses(self) -> dict[str, str]:
        return {stage["name"]: stage["status"] for stage in self.summary()["stages"]}

    def processes(self) -> list[psutil.Process]:
        """Return every process whose working folder is in the clone."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder):
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def runs(self) -> list[psutil.Process]:
        """Return the processes of flow runs that a worker started."""
        found = []
        for process in self.processes():
            try:
                if "prefect.engine" in process.cmdline():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def wait_for(self, what: str, condition: Any, deadline_s: float = 120) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen within {deadline_s} s"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def air_gap() -> Iterator[str | None]:
    """Everything of the module on loopback alone, where the kernel lets us; else the reason."""
    with without_a_network() as why_not:
        yield why_not


@pytest.fixture(scope="module")
def clone() -> Iterator[Clone]:
    # not below pytest's own folder, which another session closes to PostgreSQL's user
    with TemporaryDirectory(prefix="trainyard-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        _copy(folder)
        made = Clone(folder)
        yield made
        made.run("deployments.down")
        # the server of a release that has just ended may be on its way out
        _, left = psutil.wait_procs(made.processes(), timeout=60)
        commands = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        assert not left, f"left running: {commands}"


def _copy(folder: Path) -> None:
    root = Path(__file__).parents[2]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
