"""Engines as processes of this machine, one per slot, detached so that they outlive the release.

What runs is on record under `<home>/serving/<name>/`: a later process finds exactly these again,
even after one of them was killed.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from trainyard import files, process
from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import DeploySpec
from trainyard.rollout.target import Engine, ServedVersion, Slot
from trainyard.serving.engines import ENGINES, Launch

Command = Callable[[ServedVersion, int], Sequence[str]]
"""Arguments that start an engine for a version on a port of 127.0.0.1."""

# a Popen that is forgotten while its process runs warns; these are meant to outlive us
_started: list[subprocess.Popen[bytes]] = []


class _Recorded(Frozen):
    version: ServedVersion
    process: process.ProcessRecord
    url: str


def engine_command(spec: DeploySpec) -> Command:
    """How the engine of `spec` is started as a process."""
    engine = ENGINES[spec.engine]

    def command(version: ServedVersion, port: int) -> Sequence[str]:
        return engine.command(
            Launch(
                base=str(version.base),
                base_name=version.base_name,
                adapters={version.model: str(version.adapter)},
                port=port,
                extra=("--threads", str(spec.threads)),
            )
        )

    return command


class LocalEngines:
    def __init__(self, folder: Path, command: Command) -> None:
        self._folder = folder
        self._command = command

    def _file(self, slot: Slot) -> Path:
        return self._folder / f"{slot}.json"

    def _log(self, slot: Slot) -> Path:
        return self._folder / "logs" / f"{slot}.log"

    def _recorded(self, slot: Slot) -> _Recorded | None:
        path = self._file(slot)
        return _Recorded.model_validate(files.read_json(path)) if path.exists() else None

    def find(self, slot: Slot) -> Engine | None:
        found = self._recorded(slot)
        if found is None:
            return None
        alive = process.is_alive(found.process)
        words = "" if alive else last_line(self._log(slot))
        return Engine(version=found.version, url=found.url, alive=alive, last_words=words)

    def start(self, version: ServedVersion, slot: Slot) -> None:
        port = process.free_port()
        child = spawn(self._command(version, port), self._log(slot))
        recorded = _Recorded(
            version=version,
            process=process.record(child.pid, slot),
            url=f"http://127.0.0.1:{port}",
        )
        files.write_json(self._file(slot), recorded.model_dump(mode="json"))

    def stop(self, slot: Slot) -> None:
        found = self._recorded(slot)
        if found is not None:
            process.stop(found.process)
            self._file(slot).unlink(missing_ok=True)


def spawn(program: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one; what it says goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        child = subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    _started.append(child)
    return child


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else ""
