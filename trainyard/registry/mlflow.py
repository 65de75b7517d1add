"""MLflow as registry and tracker: one sqlite file in the home folder, or a team's server.

A version is a model version with our record as a tag; each move of an alias is a tag of the model.
"""

import json
import os
import secrets as random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from trainyard import secrets
from trainyard.errors import InputError, NotFound, Unavailable
from trainyard.recipe.register import MlflowRegistry
from trainyard.registry import (
    ALIASES,
    Alias,
    AliasMove,
    Metric,
    Registry,
    TrackedRun,
    VersionRecord,
)
from trainyard.version import key

_RECORD = "trainyard.record"
_MOVE = "trainyard.move."
_KEEP = "trainyard.keep"
_RUN = "trainyard.run_id"
_BATCH = 1000
_PAGE = 1000


class Mlflow(Registry):
    def __init__(self, spec: MlflowRegistry, home: Path) -> None:
        self.where = spec.uri or f"sqlite:///{(home / 'mlflow.db').absolute()}"
        self.lock = None if spec.uri else _lock(home)
        self.client = _open(spec, home)

    def register(self, record: VersionRecord, folder: Path) -> None:  # noqa: ARG002  (see W&B)
        with self.exclusive(), _explained(self.where):
            if any(known.digest == record.digest for known in self.versions(record.name)):
                return
            try:
                self.client.create_registered_model(record.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            self.client.create_model_version(
                record.name,
                source=_source(record),
                run_id=record.tracker_runs.get("mlflow"),
                tags={
                    "digest": record.digest,
                    "run_id": record.run_id,
                    "commit": record.commit or "",
                    "verdict": record.verdict,
                    _RECORD: record.model_dump_json(),
                },
            )

    def versions(self, name: str) -> list[VersionRecord]:
        """Where two processes registered a digest at once, the first one counts."""
        found: dict[str, VersionRecord] = {}
        for _, record in self._numbered(name):
            found.setdefault(record.digest, record)
        return list(found.values())

    def aliases(self, name: str) -> dict[Alias, str]:
        model = self._model(name)
        if model is None:
            return {}
        digests = {number: record.digest for number, record in self._numbered(name)}
        there = {alias: int(number) for alias, number in model.aliases.items()}
        return {alias: digests[there[alias]] for alias in ALIASES if there.get(alias) in digests}

    def set_alias(self, name: str, alias: Alias, digest: str, *, who: str, why: str) -> None:
        with self.exclusive(), _explained(self.where):
            number = self._number(name, digest)
            former = self.aliases(name).get(alias)
            if former == digest:
                return
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            move = AliasMove(time=now, alias=alias, digest=digest, former=former, who=who, why=why)
            # the reason first: a move is never without one
            tag = f"{_MOVE}{time.time_ns():020d}.{random.token_hex(2)}"
            self.client.set_registered_model_tag(name, tag, move.model_dump_json())
            self.client.set_registered_model_alias(name, alias, number)

    def history(self, name: str) -> list[AliasMove]:
        model = self._model(name)
        tags = sorted((model.tags if model else {}).items())
        return [AliasMove.model_validate_json(text) for tag, text in tags if tag.startswith(_MOVE)]

    def exclusive(self) -> AbstractContextManager[Any]:
        return self.lock or nullcontext()

    def keep(self, name: str, digest: str, why: str | None) -> None:
        with self.exclusive(), _explained(self.where):
            number = self._number(name, digest)
            if why is None:
                self.client.delete_model_version_tag(name, number, _KEEP)
            else:
                self.client.set_model_version_tag(name, number, _KEEP, why)

    def kept(self, name: str) -> dict[str, str]:
        return {
            VersionRecord.model_validate_json(version.tags[_RECORD]).digest: version.tags[_KEEP]
            for version in self._ours(name)
            if _KEEP in version.tags
        }

    def forget(self, name: str, digest: str) -> None:
        with self.exclusive(), _explained(self.where):
            self.check_forgettable(name, digest)
            for number, record in self._numbered(name):
                if record.digest == digest:
                    self.client.delete_model_version(name, str(number))

    def _number(self, name: str, digest: str) -> str:
        """Return the number of the version that counts; NotFound without one."""
        for number, record in self._numbered(name):
            if record.digest == digest:
                return str(number)
        raise NotFound(f"{name} has no version {digest[:12]}")

    def _model(self, name: str) -> Any:
        with _explained(self.where):
            try:
                return self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def _numbered(self, name: str) -> list[tuple[int, VersionRecord]]:
        found = [
            (int(version.version), VersionRecord.model_validate_json(version.tags[_RECORD]))
            for version in self._ours(name)
        ]
        return sorted(found, key=lambda numbered: numbered[0])

    def _ours(self, name: str) -> list[Any]:
        with _explained(self.where):
            token, found = None, []
            while True:
                page = self.client.search_model_versions(
                    f"name='{name}'", max_results=_PAGE, page_token=token
                )
                found += [version for version in page if _RECORD in version.tags]
                token = page.token
                if not token:
                    return found


class MlflowRun:
    """A run of MLflow's tracker."""

    def __init__(self, spec: MlflowRegistry, home: Path, *, name: str, run_id: str) -> None:
        self.where = spec.uri or f"sqlite:///{(home / 'mlflow.db').absolute()}"
        self.client = _open(spec, home)
        with _explained(self.where):
            experiment = self._experiment(spec, home, spec.experiment or name)
            found = self.client.search_runs([experiment], f"tags.`{_RUN}` = '{run_id}'")
            tags = {_RUN: run_id}
            run = found[0] if found else self.client.create_run(experiment, None, tags, run_id)
            self.run = run.info.run_id
        self.url = None
        if spec.uri and spec.uri.startswith("http"):
            self.url = f"{spec.uri.rstrip('/')}/#/experiments/{experiment}/runs/{self.run}"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nested values become keys with dots: a value has at most 6000 characters here."""
        given = [Param(name, _text(value)) for name, value in _flat(params)]
        for start in range(0, len(given), 100):
            self.client.log_batch(self.run, params=given[start : start + 100])

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        now = int(time.time() * 1000)
        given = [MlflowMetric(m.name, m.value, now, m.step) for m in metrics]
        for start in range(0, len(given), _BATCH):
            self.client.log_batch(self.run, metrics=given[start : start + _BATCH])

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = {"columns": list(columns), "data": [list(row) for row in rows]}
        self.client.log_text(self.run, json.dumps(table), f"tables/{name}.json")

    def log_file(self, path: Path) -> None:
        self.client.log_artifact(self.run, str(path))

    def close(self, *, failed: bool = False) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")

    def _experiment(self, spec: MlflowRegistry, home: Path, name: str) -> str:
        # left to itself, MLflow keeps artifacts of a database in the current directory
        place = None if spec.uri else (home / "mlflow" / name).absolute().as_uri()
        with _lock(home) if not spec.uri else nullcontext():
            found = self.client.get_experiment_by_name(name)
            if found:
                return str(found.experiment_id)
            try:
                return str(self.client.create_experiment(name, artifact_location=place))
            except MlflowException as error:
                found = self.client.get_experiment_by_name(name)
                if error.error_code == "RESOURCE_ALREADY_EXISTS" and found:
                    return str(found.experiment_id)
                raise


def tracked_runs(spec: MlflowRegistry, home: Path, name: str) -> list[TrackedRun]:
    client = _open(spec, home)
    with _explained(spec.uri or "mlflow.db"):
        experiment = client.get_experiment_by_name(spec.experiment or name)
        token, found = None, []
        while experiment:
            page = client.search_runs([experiment.experiment_id], page_token=token)
            found += [
                TrackedRun(
                    run.info.run_id,
                    run.data.tags[_RUN],
                    datetime.fromtimestamp(run.info.end_time / 1000, UTC),
                )
                for run in page
                if _RUN in run.data.tags and run.info.end_time
            ]
            token = page.token
            if not token:
                break
        return found


def delete_tracked_run(spec: MlflowRegistry, home: Path, id: str) -> None:
    """MLflow keeps the row of a deleted run until `mlflow gc`; its files on this disk go now."""
    client = _open(spec, home)
    with _explained(spec.uri or "mlflow.db"):
        place = Path(client.get_run(id).info.artifact_uri.removeprefix("file://"))
        client.delete_run(id)
    if place.is_relative_to((home / "mlflow").absolute()):
        shutil.rmtree(place.parent, ignore_errors=True)


def _open(spec: MlflowRegistry, home: Path) -> MlflowClient:
    # MLflow takes these from the environment only; by itself it tries for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    if spec.token:
        os.environ["MLFLOW_TRACKING_TOKEN"] = secrets.resolve(spec.token)
    uri = spec.uri or f"sqlite:///{(home / 'mlflow.db').absolute()}"
    if spec.uri:
        with _explained(uri):
            return MlflowClient(uri, uri)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{home} cannot hold the registry: {error.strerror}") from error
    # three processes that open a new file at once migrate it three times, and two of them fail
    with _lock(home), _explained(uri):
        client = MlflowClient(uri, uri)
        client.get_experiment("0")
        return client


def _lock(home: Path) -> FileLock:
    home.mkdir(parents=True, exist_ok=True)
    return FileLock(home / "mlflow.db.lock", is_singleton=True)


def _source(record: VersionRecord) -> str:
    """A server refuses sources on a disk, taking it for its own; the record has the address."""
    if record.url.startswith("file:"):
        return f"trainyard:/{key(record.name, record.digest)}"
    return record.url


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[: mlflow.utils.validation.MAX_PARAM_VAL_LENGTH]


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        said = error.message.splitlines()[0] if error.message else error.error_code
        status = error.get_http_status_code()
        if "schema" in said and "database" in said:
            raise InputError(f"{where}: {said}") from error
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFound(f"{where}: {said}") from error
        if status in {401, 403}:
            raise InputError(f"{where} does not accept register.registry.token: {said}") from error
        if error.error_code in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}:
            raise InputError(f"{where}: {said}") from error
        raise Unavailable(f"{where} did not answer: {said}") from error
    except SQLAlchemyError as error:
        raise Unavailable(f"{where}: {str(error).splitlines()[0]}") from error
