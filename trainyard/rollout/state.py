"""What a rollout knows, on disk before each action, so that a killed one can be taken up again."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from trainyard import files
from trainyard.environment import homes
from trainyard.errors import Refused
from trainyard.recipe.base import Frozen
from trainyard.rollout.pairs import Judged
from trainyard.rollout.slo import Kept
from trainyard.rollout.target import ServedVersion, Slot
from trainyard.rollout.verdict import Evidence
from trainyard.rollout.votes import Votes

Phase = Literal[
    "running",
    "waiting",
    "promoting",
    "soaking",
    "aborting",
    "rolling_back",
    "done",
    "aborted",
    "rolled_back",
]
BEFORE: tuple[Phase, ...] = ("running", "waiting")
"""The champion that a rollout began with is still the champion."""
GOING: tuple[Phase, ...] = (*BEFORE, "promoting", "soaking")
ENDING: tuple[Phase, ...] = ("aborting", "rolling_back")
ACTIVE = (*GOING, *ENDING)

Decision = Literal["go_on", "promoted", "abort", "roll_back", "already"]


class Arm(Frozen):
    """What one variant did within one step."""

    requests: int = 0
    errors: int = 0
    flagged: int = 0
    p50_s: float | None = None
    p95_s: float | None = None


class StepRecord(Frozen):
    """How one step went; a flow shows it as one task."""

    step: str
    weight: float
    """Percent of the live traffic that the candidate had."""

    decision: Decision
    reason: str
    seconds: float
    canary: Arm = Arm()
    champion: Arm = Arm()
    e_value: float = 1.0
    metric: str | None = None
    samples: tuple[str, ...] = ()
    replayed: int = 0


class Placed(Frozen):
    version: ServedVersion
    slot: Slot


class Deployment(Frozen):
    """Who is champion, and who was before: what a rollback needs to know."""

    champion: Placed
    previous: Placed | None = None
    since: float
    """Unix time."""


class State(Frozen):
    id: str
    phase: Phase
    plan: tuple[str, ...]
    candidate: Placed
    champion: Placed | None
    """Champion when the rollout began; None for the first version."""

    salt: str
    started_at: float
    done: tuple[StepRecord, ...] = ()
    weight: float = 0
    evidence: Evidence = Evidence()
    kept: Kept = Kept()
    votes: Votes = Votes()
    judged: Judged = Judged()
    boot: str = ""
    cursor: int = 0
    """Records of the gateway's run `boot` below this number are in the evidence."""

    reason: str = ""
    asked_by: str = ""
    """Flow run that is suspended until a person answers; empty once there is an answer."""

    hurried: str | None = None
    """Why a person asked to promote without further evidence."""


class Command(Frozen):
    """What a person wants."""

    verb: str
    why: str
    step: str = ""


class Store:
    """The files of one model's rollouts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self) -> State | None:
        path = self.folder / "rollout.json"
        return State.model_validate(files.read_json(path)) if path.exists() else None

    def save(self, state: State) -> State:
        files.write_json(self.folder / "rollout.json", state.model_dump(mode="json"))
        return state

    def deployment(self) -> Deployment | None:
        path = self.folder / "deployment.json"
        return Deployment.model_validate(files.read_json(path)) if path.exists() else None

    def deploy(self, champion: Placed, previous: Placed | None) -> None:
        found = Deployment(champion=champion, previous=previous, since=time.time())
        files.write_json(self.folder / "deployment.json", found.model_dump(mode="json"))

    def placed(self) -> list[Placed]:
        """Everything that has traffic, may get it back, or is being rolled out."""
        deployment, state = self.deployment(), self.state()
        found = [deployment.champion, deployment.previous] if deployment else []
        if state and state.phase in ACTIVE:
            found += [state.candidate, state.champion]
        return [one for one in found if one is not None]

    def command(self, verb: str, why: str, step: str = "") -> None:
        """Leave word for the controller; `step` is the one that an `approve` is meant for."""
        told = Command(verb=verb, why=why, step=step)
        files.write_json(self.folder / "command.json", told.model_dump())

    def read_command(self) -> Command | None:
        path = self.folder / "command.json"
        return Command.model_validate(files.read_json(path)) if path.exists() else None

    def forget_command(self) -> None:
        (self.folder / "command.json").unlink(missing_ok=True)


def placed_in(home: Path) -> Iterator[Placed]:
    """Everything that has traffic, or may get some, in all places of a home folder."""
    for place in homes(home).values():
        for folder in place.glob("serving/*/"):
            yield from Store(folder).placed()


_locks: dict[Path, FileLock] = {}


def lock(folder: Path) -> None:
    """Make this process the only controller of the model's rollouts; again is harmless.

    The lock ends with the process, however it ends. Raises Refused while another one holds it.
    """
    if folder in _locks:
        return
    folder.mkdir(parents=True, exist_ok=True)
    found = FileLock(folder / "controller.lock", thread_local=False)
    try:
        found.acquire(timeout=0)
    except Timeout:
        raise Refused(
            f"another process controls the rollout in {folder}; wait for it, or stop it"
        ) from None
    _locks[folder] = found


def lock_if_free(folder: Path) -> bool:
    """Take the lock unless a controller has it, in this process or in another one."""
    if folder in _locks:
        return False
    try:
        lock(folder)
    except Refused:
        return False
    return True


def unlock(folder: Path) -> None:
    found = _locks.pop(folder, None)
    if found is not None:
        found.release()
