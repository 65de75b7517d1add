"""Engines as containers: one per slot, found again by the id on record.

Base model and adapter are mounted read-only; the port is published on loopback only, where the
gateway is. A container restarts by itself three times; a canary that did is aborted (looks.py).
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import DeviceRequest, Healthcheck

from trainyard import files, process
from trainyard.errors import InputError, Unavailable
from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import DeploySpec, DockerTarget
from trainyard.rollout.target import Engine, ServedVersion, Slot
from trainyard.serving.engines import ENGINES, Launch, adapter_rank, not_ready
from trainyard.serving.engines import Engine as EngineSpec

BASE, ADAPTER, PORT = "/models/base", "/models/adapter", 8000
_SECOND = 1_000_000_000  # Docker counts nanoseconds
_RESTARTS = 3


class Plan(NamedTuple):
    """How an engine is started in a container."""

    image: str
    entrypoint: Sequence[str] | None
    """None keeps the image's own."""

    command: Sequence[str]
    env: Mapping[str, str]
    health: str
    """Path that answers 200 once the engine is up."""


Planner = Callable[[ServedVersion], Plan]
"""Says how to serve a version whose weights are at `BASE` and `ADAPTER`, on port `PORT`."""


def engine_plan(spec: DeploySpec) -> Planner:
    """How the engine of `spec` is started in its image."""
    engine = ENGINES[spec.engine]

    def plan(version: ServedVersion) -> Plan:
        launch = Launch(
            base=BASE,
            base_name=version.base_name,
            adapters={version.model: ADAPTER},
            host="0.0.0.0",
            port=PORT,
            max_rank=adapter_rank(version.adapter),
        )
        return _planned(engine, launch)

    return plan


def _planned(engine: EngineSpec, launch: Launch) -> Plan:
    program, *arguments = engine.command(launch)
    entrypoint: Sequence[str] | None = [program]
    if engine.name == "cpu":
        entrypoint = ["python"]  # not the interpreter of this machine
    if engine.name == "tgi":
        entrypoint = None  # its image's script refreshes the linker's cache, then launches
    return Plan(
        image=engine.image or "",
        entrypoint=entrypoint,
        command=arguments,
        env=engine.env(launch),
        health=engine.health,
    )


def _run_container(
    client: docker.DockerClient,
    spec: DockerTarget,
    plan: Plan,
    mounts: Mapping[str, str],
    port: int,
    gpus: Sequence[str],
    **options: Any,
) -> Container:
    """Start an engine, its folders (ours -> its) read-only and its port on loopback only."""
    image = spec.image or plan.image
    _fetch(client, image)
    try:
        return client.containers.run(
            image,
            [*plan.command, *spec.arguments],
            entrypoint=list(plan.entrypoint) if plan.entrypoint else None,
            detach=True,
            init=True,
            environment={**plan.env, **spec.env},
            volumes={ours: {"bind": its, "mode": "ro"} for ours, its in mounts.items()},
            ports={f"{PORT}/tcp": ("127.0.0.1", port)},
            device_requests=_devices(gpus),
            shm_size=f"{int(spec.shm_gib * 1024)}m",
            security_opt=["no-new-privileges"],
            **options,
        )
    except APIError as error:
        raise InputError(f"Docker could not start {image}: {error.explanation}") from error


def _devices(gpus: Sequence[str]) -> list[DeviceRequest]:
    return [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])] if gpus else []


class _Recorded(Frozen):
    version: ServedVersion
    container: str
    url: str


class DockerEngines:
    def __init__(self, spec: DockerTarget, folder: Path, planner: Planner) -> None:
        self._spec = spec
        self._folder = folder
        self._planner = planner

    def _file(self, slot: Slot) -> Path:
        return self._folder / f"{slot}.json"

    def _recorded(self, slot: Slot) -> _Recorded | None:
        path = self._file(slot)
        return _Recorded.model_validate(files.read_json(path)) if path.exists() else None

    def find(self, slot: Slot) -> Engine | None:
        recorded = self._recorded(slot)
        if recorded is None:
            return None
        with _docker() as client:
            container = _container(client, recorded.container)
            if container is None:
                words, alive, restarts = "the container is gone", False, 0
            else:
                alive = container.status in ("running", "created")
                restarts = int(container.attrs["RestartCount"])
                words = "" if alive else _last_words(container)
        return Engine(
            version=recorded.version,
            url=recorded.url,
            alive=alive,
            last_words=words,
            restarts=restarts,
        )

    def start(self, version: ServedVersion, slot: Slot) -> None:
        plan = self._planner(version)
        port = process.free_port()
        with _docker() as client:
            self._remove_leftover(client, slot)
            found = self._run(client, plan, version, slot, port)
        recorded = _Recorded(version=version, container=found, url=f"http://127.0.0.1:{port}")
        files.write_json(self._file(slot), recorded.model_dump(mode="json"))

    def _run(
        self,
        client: docker.DockerClient,
        plan: Plan,
        version: ServedVersion,
        slot: Slot,
        port: int,
    ) -> str:
        try:
            container = _run_container(
                client,
                self._spec,
                plan,
                {str(version.base): BASE, str(version.adapter): ADAPTER},
                port,
                self._spec.blue_gpus if slot == "blue" else self._spec.green_gpus,
                name=self._name(slot),
                healthcheck=_healthcheck(plan),
                restart_policy={"Name": "on-failure", "MaximumRetryCount": _RESTARTS},
                labels={"trainyard.slot": slot, "trainyard.version": version.digest},
            )
        except InputError:
            self._remove_leftover(client, slot)
            raise
        return str(container.id)

    def _name(self, slot: Slot) -> str:
        # two checkouts may serve the same model name on one Docker engine
        place = hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]
        return f"trainyard-{self._folder.name}-{slot}-{place}"

    def _remove_leftover(self, client: docker.DockerClient, slot: Slot) -> None:
        """Remove what a killed controller started in this slot before it could write it down."""
        left = _container(client, self._name(slot))
        if left is not None:
            left.remove(force=True)

    def stop(self, slot: Slot) -> None:
        recorded = self._recorded(slot)
        if recorded is None:
            return
        with _docker() as client:
            container = _container(client, recorded.container)
            if container is not None:
                container.stop(timeout=10)
                container.remove(force=True)
        self._file(slot).unlink(missing_ok=True)


@contextmanager
def _docker() -> Iterator[docker.DockerClient]:
    try:
        client = docker.from_env()
    except DockerException as error:
        raise Unavailable(f"the Docker engine did not answer: {error}") from error
    try:
        yield client
    finally:
        client.close()


def _container(client: docker.DockerClient, name: str) -> Container | None:
    try:
        return client.containers.get(name)
    except NotFound:
        return None


def _fetch(client: docker.DockerClient, image: str) -> None:
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except ImageNotFound as error:
            raise InputError(f"no image {image}: {error.explanation}") from error
        except APIError as error:
            raise Unavailable(f"image {image} could not be pulled: {error}") from error


def _healthcheck(plan: Plan) -> Healthcheck:
    """For operators (`docker ps`); the rollout itself asks for more, see readiness.py."""
    url = f"http://127.0.0.1:{PORT}{plan.health}"
    ask = f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"
    return Healthcheck(
        test=["CMD", "python3", "-c", ask],
        interval=30 * _SECOND,
        timeout=10 * _SECOND,
        retries=3,
        start_period=600 * _SECOND,
    )


def _last_words(container: Container) -> str:
    state: dict[str, Any] = container.attrs["State"]
    lines = container.logs(tail=1).decode("utf-8", errors="replace").strip()
    killed = ", out of memory" if state.get("OOMKilled") else ""
    return f"exit {state.get('ExitCode')}{killed}: {lines}"


@contextmanager
def serving(
    spec: DeploySpec,
    *,
    base: Path,
    base_name: str,
    adapters: Mapping[str, Path],
    log: Path,
) -> Iterator[str]:
    """Serve a base and several adapters from one container for a while; yields its URL.

    For evaluation: the same image, engine and arguments as the rollout will use.
    Raises InputError for an image or option that cannot start, Unavailable when it is not ready
    within `ready_timeout_s`.
    """
    target = spec.target
    assert isinstance(target, DockerTarget)
    engine = ENGINES[spec.engine]
    places = {name: f"{ADAPTER}-{n}" for n, name in enumerate(adapters)}
    rank = max((adapter_rank(folder) for folder in adapters.values()), default=8)
    launch = Launch(
        base=BASE, base_name=base_name, adapters=places, host="0.0.0.0", port=PORT, max_rank=rank
    )
    mounts = {str(base.absolute()): BASE}
    mounts |= {str(folder.absolute()): places[name] for name, folder in adapters.items()}
    port = process.free_port()
    with _docker() as client:
        container = _run_container(
            client,
            target,
            _planned(engine, launch),
            mounts,
            port,
            target.blue_gpus,
            labels={"trainyard.evaluation": base_name},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            _await(container, url, engine, [base_name, *adapters], spec.ready_timeout_s)
            yield url
        finally:
            files.write_bytes(log, container.logs())
            container.remove(force=True)


def _await(
    container: Container, url: str, engine: EngineSpec, models: Sequence[str], timeout_s: float
) -> None:
    end = time.monotonic() + timeout_s
    why: str | None = "it was not asked yet"
    while why is not None:
        container.reload()
        if container.status == "exited":
            raise InputError(f"the engine {engine.name} ended, {_last_words(container)}")
        if time.monotonic() > end:
            raise Unavailable(f"{engine.name} was not ready within {timeout_s:g} s: {why}")
        time.sleep(1)
        answers = (not_ready(url, engine, model, base_name=models[0]) for model in models)
        why = next((answer for answer in answers if answer), None)
