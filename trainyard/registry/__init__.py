"""The registry of versions and aliases, and the tracker of runs, behind two small protocols.

Aliases: `candidate`, `dev`, `staging`, `production` (the champion), `previous`. No other name is
used, so that none is one that a backend keeps for itself (`latest`, `v3`).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, assert_never, get_args

from pydantic import BaseModel, ConfigDict

from trainyard.errors import InputError, NotFound, Refused
from trainyard.recipe.register import MlflowRegistry, RegistrySpec, WandbRegistry

logger = logging.getLogger(__name__)

Alias = Literal["candidate", "dev", "staging", "production", "previous"]
ALIASES: tuple[Alias, ...] = get_args(Alias)

_SHORTEST_PREFIX = 6


class VersionRecord(BaseModel):
    """What a registry knows of a version; the rest is in its `lineage.json`."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    url: str
    """Where the archive holds it."""
    manifest_sha256: str
    """sha256 of its manifest, and so of every file it lists."""
    run_id: str
    commit: str | None = None
    created: str
    verdict: str
    scores: dict[str, float] = {}
    parent: str | None = None
    """Digest of the champion it was compared with."""
    tracker_runs: dict[str, str] = {}
    """Tracker -> its own id of the run that made it, as {"mlflow": ...}."""


class AliasMove(BaseModel):
    """Who moved an alias, when, from where to where, and why."""

    model_config = ConfigDict(frozen=True)

    time: str
    alias: Alias
    digest: str
    former: str | None
    who: str
    why: str


class Registry(Protocol):
    """Where versions have names. A version is registered once per digest."""

    def register(self, record: VersionRecord, folder: Path) -> None:
        """Make the version known; `folder` holds it. A digest that is known stays as it is."""

    def versions(self, name: str) -> list[VersionRecord]:
        """Return every version of a model, the oldest first; none for an unknown model."""

    def aliases(self, name: str) -> dict[Alias, str]:
        """Return alias -> digest."""

    def set_alias(self, name: str, alias: Alias, digest: str, *, who: str, why: str) -> None:
        """Move the alias in one step; NotFound for a version that is not registered."""

    def history(self, name: str) -> list[AliasMove]:
        """Return every move of an alias, the oldest first."""

    def exclusive(self) -> AbstractContextManager[Any]:
        """Keep other processes from writing meanwhile, where the backend can."""

    def keep(self, name: str, digest: str, why: str | None) -> None:
        """Tag the version so that no sweep takes it; with `why` None, remove the tag."""

    def kept(self, name: str) -> dict[str, str]:
        """Return digest -> why of the versions that are tagged to be kept."""

    def forget(self, name: str, digest: str) -> None:
        """Take the version out of the registry; Refused while an alias or a tag names it."""

    def follow(self, name: str) -> None:  # noqa: ARG002  (only a mirror has anything to do)
        """Give a mirror what it missed, where there is one."""
        return

    def check_forgettable(self, name: str, digest: str) -> None:
        named: list[str] = [alias for alias, at in self.aliases(name).items() if at == digest]
        named += ["kept"] if digest in self.kept(name) else []
        if named:
            raise Refused(f"{name}@{digest[:12]} is {' and '.join(named)}, so it stays")

    def resolve(self, name: str, ref: str) -> VersionRecord:
        """Find a version by alias, digest or its beginning, run id, or commit or its beginning.

        Raises NotFound with what there is, InputError when several versions fit.
        """
        versions = self.versions(name)
        aliases = self.aliases(name)
        if ref in ALIASES:
            if ref not in aliases:
                raise NotFound(f"{name} has no {ref}; it has {_names(aliases) or 'no alias yet'}")
            return next(v for v in versions if v.digest == aliases[ref])
        digest = ref.removeprefix(f"{name}@").removeprefix("sha256-")
        found = [v for v in versions if ref == v.run_id]
        if not found and len(digest) >= _SHORTEST_PREFIX:
            found = [v for v in versions if v.digest.startswith(digest)]
            found = found or [v for v in versions if (v.commit or "").startswith(ref)]
        if not found:
            there = ", ".join(v.digest[:12] for v in versions[-5:]) or "none"
            raise NotFound(
                f"{name} has no version {ref!r}; it has {there}"
                + (f", and the aliases {_names(aliases)}" if aliases else "")
            )
        if len(found) > 1:
            several = ", ".join(v.digest[:12] for v in found)
            raise InputError(f"{ref!r} fits several versions of {name}: {several}; name one")
        return found[0]

    def promote(self, name: str, digest: str, *, who: str, why: str) -> None:
        """Make the version champion and the former champion `previous`.

        `previous` moves first: killed in between, the former champion is both, and still champion.
        """
        with self.exclusive():
            former = self.aliases(name).get("production")
            if former == digest:
                return
            if former:
                self.set_alias(name, "previous", former, who=who, why=why)
            self.set_alias(name, "production", digest, who=who, why=why)

    def put_back(self, name: str, *, who: str, why: str) -> VersionRecord:
        """Make `previous` champion again and return it. `previous` stays: asked twice, the same."""
        with self.exclusive():
            former = self.resolve(name, "previous")
            self.set_alias(name, "production", former.digest, who=who, why=why)
            return former


class Metric(NamedTuple):
    name: str
    value: float
    step: int


class TrackedRun(NamedTuple):
    id: str
    """The tracker's own."""
    run_id: str
    ended: datetime


class Tracker(Protocol):
    """One run in the tracker's own pages; opened again by the same name, it is the same run."""

    run: str
    """The tracker's own id of the run."""
    url: str | None
    """Where a person sees it."""

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def log_metrics(self, metrics: Sequence[Metric]) -> None: ...

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None: ...

    def log_file(self, path: Path) -> None:
        """Attach a file; a `.html` is shown as a page."""

    def close(self, *, failed: bool = False) -> None: ...


class SteadyTracker:
    """A tracker whose failure is logged and never ends a release."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.run = tracker.run
        self.url = tracker.url

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._try("log_params", params)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        self._try("log_metrics", metrics)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._try("log_table", name, columns, rows)

    def log_file(self, path: Path) -> None:
        self._try("log_file", path)

    def close(self, *, failed: bool = False) -> None:
        self._try("close", failed=failed)

    def _try(self, method: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self.tracker, method)(*args, **kwargs)
        except Exception as error:  # the promise: a tracker never loses a release
            logger.warning("the tracker failed at %s, the release goes on: %s", method, error)


def open_registry(spec: RegistrySpec, home: Path) -> Registry:
    """Open the registry that `spec` names. Only that backend's library is imported."""
    _no_telemetry()
    match spec:
        case MlflowRegistry():
            from trainyard.registry.mlflow import Mlflow

            return Mlflow(spec, home)
        case WandbRegistry():
            from trainyard.registry.wandb import Wandb

            return Wandb(spec, home)
        case _:
            assert_never(spec)


def open_tracker(spec: RegistrySpec, home: Path, *, name: str, run_id: str) -> Tracker:
    """Open the run named `run_id` of the model `name`; it must open, afterwards it may fail."""
    _no_telemetry()
    match spec:
        case MlflowRegistry():
            from trainyard.registry.mlflow import MlflowRun

            return SteadyTracker(MlflowRun(spec, home, name=name, run_id=run_id))
        case WandbRegistry():
            from trainyard.registry.wandb import WandbRun

            return SteadyTracker(WandbRun(spec, home, name=name, run_id=run_id))
        case _:
            assert_never(spec)


def tracked_runs(spec: RegistrySpec, home: Path, name: str) -> list[TrackedRun]:
    """Return the ended runs of the model `name` that the tracker has."""
    _no_telemetry()
    match spec:
        case MlflowRegistry():
            from trainyard.registry import mlflow

            return mlflow.tracked_runs(spec, home, name)
        case WandbRegistry():
            from trainyard.registry import wandb

            return wandb.tracked_runs(spec, home, name)
        case _:
            assert_never(spec)


def delete_tracked_run(spec: RegistrySpec, home: Path, id: str) -> None:
    """Delete a run and its files from the tracker; one that is gone already is no error."""
    _no_telemetry()
    match spec:
        case MlflowRegistry():
            from trainyard.registry import mlflow

            mlflow.delete_tracked_run(spec, home, id)
        case WandbRegistry():
            from trainyard.registry import wandb

            wandb.delete_tracked_run(spec, home, id)
        case _:
            assert_never(spec)


def _no_telemetry() -> None:
    # the libraries read these when they are imported
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _names(aliases: Mapping[Alias, str]) -> str:
    return ", ".join(f"{alias} {digest[:12]}" for alias, digest in aliases.items())
