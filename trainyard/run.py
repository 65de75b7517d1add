"""One run of a release: its folder, its stages as they happen, its summary.

`summary.json` is rewritten whole at every change, so that whatever happens to the process, the
folder says which stage it was in and why it ended.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from trainyard import files, process
from trainyard.errors import InputError, TrainyardError
from trainyard.secrets import mask

logger = logging.getLogger(__name__)

Status = Literal["running", "done", "skipped", "waiting", "failed"]
WORKING = "working"
WAITING = "PENDING_HUMAN"
"""Verdict with which a run that ends has not failed: it waits for people."""


class Outcome(Protocol):
    """What a stage came to."""

    @property
    def skipped(self) -> bool: ...

    @property
    def words(self) -> str:
        """One line for the console, the summary and the report."""
        ...


class StageSummary(BaseModel):
    name: str
    status: Status
    seconds: float | None = None
    queue_s: float | None = None
    """Of these seconds, those before the work began: it waited for a worker or a GPU."""
    skipped: bool = False
    reason: str | None = None

    def came_to(self, outcome: Outcome) -> None:
        self.skipped, self.reason = outcome.skipped, outcome.words


class Summary(BaseModel):
    """What a run came to; `summary.json` has exactly these keys."""

    run_id: str
    recipe: str
    recipe_path: str
    started: str
    process: process.ProcessRecord
    flow_run_id: str | None = None
    verdict: str | None = None
    status: Literal["running", "done", "waiting", "failed"] = "running"
    failed_stage: str | None = None
    error: str | None = None
    stages: list[StageSummary] = []
    scores: dict[str, Any] = {}
    version: str | None = None
    endpoint: str | None = None
    report: str | None = None


def working(folder: Path, stage: str) -> None:
    """Mark that a stage of the run in `folder` has what it waited for, and works."""
    mark = folder / WORKING / stage
    mark.parent.mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        mark.touch()


class Run:
    """A run's folder `<home>/runs/<run id>/`, open for writing by one process."""

    def __init__(self, home: Path, summary: Summary) -> None:
        self.home = home
        self.summary = summary
        self.folder = home / "runs" / summary.run_id

    @classmethod
    def start(
        cls, home: Path, recipe: str, recipe_path: str, flow_run_id: str | None = None
    ) -> "Run":
        now = datetime.now(UTC)
        run_id = f"{recipe}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        summary = Summary(
            run_id=run_id,
            recipe=recipe,
            recipe_path=recipe_path,
            started=now.isoformat(timespec="seconds"),
            process=process.record(os.getpid(), "release"),
            flow_run_id=flow_run_id,
        )
        run = cls(home, summary)
        try:
            run.folder.mkdir(parents=True)
            run.save()
        except OSError as error:
            raise InputError(
                f"{home} cannot hold runs: {error.strerror}; choose another folder"
            ) from error
        return run

    @classmethod
    @contextmanager
    def opened(
        cls, home: Path, recipe: str, recipe_path: str, flow_run_id: str | None = None
    ) -> Iterator["Run"]:
        """Start a run and end it, whatever happens inside."""
        run = cls.start(home, recipe, recipe_path, flow_run_id)
        try:
            yield run
        except BaseException as error:
            run.end(error)
            raise
        run.end()

    @contextmanager
    def stage(self, name: str) -> Iterator[StageSummary]:
        """Record one stage; an exception inside marks it, and the run, as failed and goes on up."""
        stage = StageSummary(name=name, status="running")
        self.summary.stages.append(stage)
        self.save()
        self.event(name, "started")
        logger.info("%s", name, extra={"stage": name, "event": "started"})
        begin = time.monotonic()
        try:
            yield stage
            stage.status = "skipped" if stage.skipped else "done"
        except BaseException as error:
            if self.summary.verdict == WAITING:
                stage.status = "waiting"
            else:
                stage.status, stage.reason = "failed", reason_of(error)
                self.summary.failed_stage = name
            raise
        finally:
            stage.seconds = round(time.monotonic() - begin, 2)
            stage.queue_s = self._queued(name, stage.seconds)
            self.save()
            self.event(name, stage.status, seconds=stage.seconds, reason=stage.reason)
            level = logging.ERROR if stage.status == "failed" else logging.INFO
            told = {"stage": name, "event": stage.status, "seconds": stage.seconds}
            told |= {"run_id": self.summary.run_id, "recipe": self.summary.recipe}
            logger.log(level, "%s: %s", name, stage.reason or stage.status, extra=told)

    def _queued(self, stage: str, seconds: float) -> float | None:
        """Wait until the first mark of `working`, which is spent when it is read."""
        mark = self.folder / WORKING / stage
        try:
            began = mark.stat().st_mtime
            mark.unlink()
        except FileNotFoundError:
            return None
        return round(min(max(seconds - (time.time() - began), 0.0), seconds), 2)

    def end(self, error: BaseException | None = None) -> None:
        waits = self.summary.verdict == WAITING
        self.summary.status = "waiting" if waits else "failed" if error else "done"
        self.summary.error = reason_of(error) if error and not waits else None
        self.save()
        self.event("release", self.summary.status, reason=self.summary.error)

    def save(self) -> None:
        files.write_json(self.folder / "summary.json", self.summary.model_dump())

    def event(self, stage: str, what: str, **values: Any) -> None:
        """Append one line to `events.jsonl`."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stage": stage,
            "event": what,
        }
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry | values) + "\n")


def reason_of(error: BaseException) -> str:
    """Say in one line why something ended: our own errors speak for themselves."""
    if isinstance(error, TrainyardError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return mask(f"{type(error).__name__}: {error}")
