"""Weights & Biases as registry and tracker, by its own client.

A version is an artifact of the project, linked to a collection of the registry; our record and the
moves of aliases are in its metadata. Offline, W&B keeps metrics but has no registry: versions wait
for the server (they are parked), runs are sent by the next one that reaches it.
"""

import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import wandb
from wandb.errors import AuthenticationError, CommError, UsageError

from trainyard import files, process, secrets
from trainyard.errors import InputError, NotFound, Unavailable
from trainyard.recipe.register import WandbRegistry
from trainyard.registry import (
    ALIASES,
    Alias,
    AliasMove,
    Metric,
    Registry,
    TrackedRun,
    VersionRecord,
)

logger = logging.getLogger(__name__)

_RECORD, _MOVES = "trainyard", "trainyard_moves"
_TYPE = "model"
_KEEP = "trainyard_keep"
_STEP = "trainyard/step"
_LONGEST_ID = 64
_OPEN = "trainyard-open.json"


Mode = Literal["online", "offline"]


class Wandb(Registry):
    def __init__(self, spec: WandbRegistry, home: Path) -> None:
        self.spec = spec
        self.home = home
        _environment(spec, home)
        with _explained(spec):
            self.api = _api(spec)

    def register(self, record: VersionRecord, folder: Path) -> None:
        if any(known.digest == record.digest for known in self.versions(record.name)):
            return
        with _explained(self.spec), self._run_of(record) as run:
            metadata = {_RECORD: record.model_dump(mode="json")}
            artifact = wandb.Artifact(record.name, _TYPE, metadata=metadata)
            artifact.add_dir(str(folder))
            logged = run.log_artifact(artifact)
            logged.wait(timeout=3600)
            run.link_artifact(logged, self._collection(record.name))

    def _run_of(self, record: VersionRecord) -> Any:
        return _start(self.spec, self.home, name=record.run_id, group=record.run_id, job="register")

    def versions(self, name: str) -> list[VersionRecord]:
        found: dict[str, VersionRecord] = {}
        for artifact in self._artifacts(name):
            record = VersionRecord.model_validate(artifact.metadata[_RECORD])
            found.setdefault(record.digest, record)
        return list(found.values())

    def aliases(self, name: str) -> dict[Alias, str]:
        digests = {
            alias: artifact.metadata[_RECORD]["digest"]
            for artifact in self._artifacts(name)
            for alias in artifact.aliases
        }
        return {alias: digests[alias] for alias in ALIASES if alias in digests}

    def set_alias(self, name: str, alias: Alias, digest: str, *, who: str, why: str) -> None:
        artifacts = list(self._artifacts(name))
        target = next((a for a in artifacts if a.metadata[_RECORD]["digest"] == digest), None)
        if target is None:
            raise NotFound(f"{name} has no version {digest[:12]}, so {alias} cannot be moved to it")
        holder = next((a for a in artifacts if alias in a.aliases), None)
        former = holder.metadata[_RECORD]["digest"] if holder else None
        if former == digest:
            return
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        move = AliasMove(time=now, alias=alias, digest=digest, former=former, who=who, why=why)
        with _explained(self.spec):
            # the reason first: a move is never without one
            target.metadata[_MOVES] = [*target.metadata.get(_MOVES, []), move.model_dump()]
            target.save()
            # the server takes the alias from its former holder in the same step
            target.aliases.append(alias)
            target.save()

    def history(self, name: str) -> list[AliasMove]:
        moves = [
            AliasMove.model_validate(move)
            for artifact in self._artifacts(name)
            for move in artifact.metadata.get(_MOVES, [])
        ]
        return sorted(moves, key=lambda move: move.time)

    def exclusive(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def keep(self, name: str, digest: str, why: str | None) -> None:
        found = self._artifact(name, digest)
        with _explained(self.spec):
            if why is None:
                found.metadata.pop(_KEEP, None)
            else:
                found.metadata[_KEEP] = why
            found.save()

    def kept(self, name: str) -> dict[str, str]:
        return {
            artifact.metadata[_RECORD]["digest"]: artifact.metadata[_KEEP]
            for artifact in self._artifacts(name)
            if _KEEP in artifact.metadata
        }

    def forget(self, name: str, digest: str) -> None:
        self.check_forgettable(name, digest)
        found = self._artifact(name, digest)
        with _explained(self.spec):
            source = found.source_artifact
            found.unlink()
            source.delete(delete_aliases=True)

    def _artifact(self, name: str, digest: str) -> Any:
        """Return the artifact of the version; NotFound without one."""
        for artifact in self._artifacts(name):
            if artifact.metadata[_RECORD]["digest"] == digest:
                return artifact
        raise NotFound(f"{name} has no version {digest[:12]}")

    def _collection(self, name: str) -> str:
        return f"wandb-registry-{self.spec.registry}/{name}"

    def _artifacts(self, name: str) -> list[Any]:
        """Return our artifacts of the collection, the oldest first."""
        with _explained(self.spec):
            try:
                found = list(self.api.artifacts(_TYPE, self._collection(name)))
            except ValueError as error:
                if "Unable to parse" in str(error):  # how the client says: no such collection
                    return []
                raise
        ours = [artifact for artifact in found if _RECORD in artifact.metadata]
        return sorted(ours, key=lambda artifact: int(artifact.version.removeprefix("v")))


class WandbRun:
    """A run of W&B's tracker, offline when the recipe allows it and the server is away."""

    def __init__(self, spec: WandbRegistry, home: Path, *, name: str, run_id: str) -> None:
        self.spec = spec
        _environment(spec, home)

        def start(mode: Mode) -> Any:
            return _start(spec, home, name=run_id, group=name, job="release", mode=mode)

        try:
            _require_answer(spec)
            with _explained(spec):
                self._run = start("online")
            sync_offline_runs(spec, home)
        except Unavailable as error:
            if spec.when_down == "skip":
                raise
            logger.warning("%s; this run is kept offline and sent later", error)
            self._run = start("offline")
        self.folder = Path(self._run.dir).parent
        files.write_json(self.folder / _OPEN, process.record(os.getpid()).model_dump())
        self._run.define_metric("*", step_metric=_STEP)
        self.run = str(self._run.id)
        self.url = self._run.url

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._run.config.update(dict(params), allow_val_change=True)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        for metric in metrics:
            by_step[metric.step][metric.name] = metric.value
        for step, values in sorted(by_step.items()):
            self._run.log({**values, _STEP: step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table})

    def log_file(self, path: Path) -> None:
        if path.suffix in {".html", ".svg"}:
            self._run.log({path.stem: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
        else:
            self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, *, failed: bool = False) -> None:
        self._run.finish(exit_code=1 if failed else 0)
        (self.folder / _OPEN).unlink(missing_ok=True)


def _require_answer(spec: WandbRegistry) -> None:
    """Raises Unavailable for a silent server: a run that failed to open holds its id for good."""
    asked = {"query": "query Viewer { viewer { id } }"}
    try:
        httpx.post(
            f"{spec.base_url}/graphql",
            json=asked,
            auth=("api", secrets.resolve(spec.api_key)),
            timeout=spec.connect_timeout_s,
        )
    except httpx.TransportError as error:
        raise Unavailable(f"{spec.base_url} did not answer: {error}") from error


def tracker_id(run_id: str) -> str:
    """W&B lets the client choose a run's id, so that it is known before the server is asked."""
    return run_id[-_LONGEST_ID:].lstrip("-")


def tracked_runs(spec: WandbRegistry, home: Path, name: str) -> list[TrackedRun]:
    _environment(spec, home)
    with _explained(spec):
        found = _api(spec).runs(f"{spec.entity}/{spec.project}", filters={"group": name})
        return [
            TrackedRun(run.id, run.name, datetime.fromisoformat(run.heartbeat_at))
            for run in found
            if run.state != "running"
        ]


def delete_tracked_run(spec: WandbRegistry, home: Path, id: str) -> None:
    _environment(spec, home)
    with _explained(spec):
        _api(spec).run(f"{spec.entity}/{spec.project}/{id}").delete()


def _api(spec: WandbRegistry) -> Any:
    return wandb.Api(
        overrides={"base_url": spec.base_url, "entity": spec.entity},
        timeout=round(spec.connect_timeout_s),
        api_key=secrets.resolve(spec.api_key),
    )


def sync_offline_runs(spec: WandbRegistry, home: Path) -> list[Path]:
    """Send the runs that were kept offline and that nobody writes any more; return those sent."""
    sent = []
    for folder in sorted((home / "wandb").glob("offline-run-*")):
        still_open = folder / _OPEN
        if still_open.exists():
            writer = process.ProcessRecord.model_validate(files.read_json(still_open))
            if process.is_alive(writer):
                continue
        if any(folder.glob("*.wandb.synced")):
            continue
        secret = secrets.resolve(spec.api_key)
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(folder.absolute())],
            cwd=home,  # it leaves a log where it runs
            env=os.environ | {"WANDB_API_KEY": secret, "WANDB_BASE_URL": spec.base_url},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            logger.warning("%s was not sent: %s", folder, secrets.mask(done.stderr.strip()[-500:]))
        else:
            sent.append(folder)
    return sent


def _start(
    spec: WandbRegistry,
    home: Path,
    *,
    name: str,
    group: str,
    job: str,
    mode: Mode = "online",
) -> Any:
    settings = wandb.Settings(
        base_url=spec.base_url,
        api_key=secrets.resolve(spec.api_key),
        init_timeout=spec.connect_timeout_s,
        root_dir=str(home.absolute()),
        # what we print, and the command line, stay on this machine
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        silent=True,
    )
    return wandb.init(
        entity=spec.entity,
        project=spec.project,
        name=name,
        group=group,
        job_type=job,
        mode=mode,
        id=tracker_id(name) if job == "release" else None,
        resume="allow" if job == "release" else None,
        reinit="create_new",
        settings=settings,
    )


def _environment(spec: WandbRegistry, home: Path) -> None:
    # staged artifacts and caches belong with the runs: the client takes these places from here only
    (home / "wandb").mkdir(parents=True, exist_ok=True)
    for name in ("DATA", "CACHE", "CONFIG"):
        os.environ.setdefault(f"WANDB_{name}_DIR", str((home / "wandb" / name.lower()).absolute()))
    if len(secrets.resolve(spec.api_key)) < 40:
        raise InputError(
            f"the key in {spec.api_key} is shorter than the 40 characters of a W&B key"
        )


@contextmanager
def _explained(spec: WandbRegistry) -> Iterator[None]:
    try:
        yield
    except AuthenticationError as error:
        raise InputError(f"{spec.base_url} does not accept the key in {spec.api_key}") from error
    except UsageError as error:
        raise InputError(f"{spec.base_url}: {error}") from error
    except (CommError, TimeoutError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "registry" in said and "not found" in said:
            raise InputError(
                f"{spec.base_url} has no registry {spec.registry} for {spec.entity}; create it"
            ) from error
        raise Unavailable(f"{spec.base_url} did not answer: {secrets.mask(said)}") from error
