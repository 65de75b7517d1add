"""Give a registered version traffic, on evidence, and take it back: what flows and the CLI call."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

from trainyard import files
from trainyard.environment import homes
from trainyard.errors import InputError, NotFound
from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import DeploySpec, DockerTarget, KubernetesTarget, LocalTarget
from trainyard.rollout.begin import begin, is_serving
from trainyard.rollout.gateway_target import SPEC_FILE, GatewayTarget, serving_folder
from trainyard.rollout.local import LocalEngines, engine_command
from trainyard.rollout.state import (
    ACTIVE,
    BEFORE,
    Deployment,
    Placed,
    State,
    StepRecord,
    Store,
    lock,
    lock_if_free,
    unlock,
)
from trainyard.rollout.steps import Rollout
from trainyard.rollout.target import Engines, Probe, ServedVersion, Target

__all__ = [
    "Probe",
    "Rollback",
    "Rollout",
    "ServedVersion",
    "StepRecord",
    "Target",
    "begin",
    "command",
    "down",
    "open_target",
    "recorded_target",
    "rollback",
    "run",
    "status",
    "up",
]


def open_target(spec: DeploySpec, name: str, home: Path) -> Target:
    """The place that `spec` names, for the model `name`. Starts nothing."""
    folder = serving_folder(home, name)
    engines: Engines
    match spec.target:
        case LocalTarget():
            engines = LocalEngines(folder, engine_command(spec))
        case DockerTarget():
            # the docker library is only for who deploys to Docker
            from trainyard.rollout.docker import DockerEngines, engine_plan  # noqa: PLC0415

            engines = DockerEngines(spec.target, folder, engine_plan(spec))
        case KubernetesTarget():
            # the kubernetes library is only for who deploys to a cluster
            from trainyard.rollout.kubernetes import Cluster  # noqa: PLC0415
            from trainyard.rollout.kubernetes_target import PodsTarget  # noqa: PLC0415

            where = spec.target
            return PodsTarget(spec, name, home, Cluster(where.namespace, where.context))
        case _:
            assert_never(spec.target)
    return GatewayTarget(spec, name, home, engines)


def recorded_target(home: Path, name: str) -> Target:
    """Return the place where `name` was deployed last, as its own record says."""
    path = serving_folder(home, name) / SPEC_FILE
    spec = DeploySpec.model_validate(files.read_json(path)) if path.exists() else DeploySpec()
    return open_target(spec, name, home)


def run(
    target: Target,
    served: ServedVersion,
    *,
    spec: DeploySpec,
    replay: Sequence[Mapping[str, Any]] = (),
) -> Rollout:
    """Begin and run every step to the end, whatever the end is."""
    rollout = begin(target, served, spec=spec, replay=replay)
    while rollout.next_step is not None:
        rollout.step()
    return rollout


class Rollback(Frozen):
    back_to: str
    away_from: str
    why: str
    warm: bool
    """Whether the former champion still ran: then the rollback was one weight change."""

    seconds: float


def rollback(target: Target, why: str, *, ready_timeout_s: float = 300) -> Rollback:
    """Put the former champion back; a rollout in progress is told to end.

    Raises NotFound when there was no champion before this one.
    """
    began = time.monotonic()
    store = Store(target.folder)
    deployment, state = store.deployment(), store.state()
    if deployment is None:
        raise NotFound(f"nothing of {target.name} was ever deployed here")
    if state is not None and state.phase in BEFORE and state.champion is not None:
        return _stop_canary(target, store, state, why, began)
    former, current = deployment.previous, deployment.champion
    if former is None:
        raise NotFound(f"{current.version.model} has no former champion to go back to")
    warm = target.ready(former.slot).ready
    if not warm:
        target.start(former.version, former.slot)
        _wait_ready(target, former, ready_timeout_s)
    store.command("abort", why)
    target.set_weights({former.slot: 100}, former.slot)
    store.deploy(former, None)
    seconds = time.monotonic() - began
    if state is None or state.phase not in ACTIVE:
        store.forget_command()
        if current.slot != former.slot:
            target.stop(current.slot)
    return Rollback(
        back_to=former.version.model,
        away_from=current.version.model,
        why=why,
        warm=warm,
        seconds=seconds,
    )


def _stop_canary(target: Target, store: Store, state: State, why: str, began: float) -> Rollback:
    assert state.champion is not None
    if lock_if_free(target.folder):
        Rollout(target, DeploySpec(), state, ()).abort(why)
    else:
        store.command("abort", why)
        target.set_weights({state.champion.slot: 100}, state.champion.slot)
    return Rollback(
        back_to=state.champion.version.model,
        away_from=state.candidate.version.model,
        why=why,
        warm=True,
        seconds=time.monotonic() - began,
    )


def _wait_ready(target: Target, placed: Placed, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not (found := target.ready(placed.slot)).ready:
        if not found.alive or time.monotonic() > end:
            raise InputError(f"{placed.version.model} did not come up: {found.why}")
        time.sleep(0.2)


Verb = Literal["approve", "promote", "pause", "resume", "abort"]


def command(home: Path, name: str, verb: Verb, why: str) -> str:
    """Tell the controller of a rollout in progress what a person wants; returns what follows.

    `approve` answers the question that it waits with, `promote` skips evidence and questions that
    are still missing, `pause` waits at the weight that it has. An `abort` that no controller is
    there to hear is done at once.
    """
    target = recorded_target(home, name)
    store = Store(target.folder)
    state = store.state()
    if state is None or state.phase not in ACTIVE:
        raise NotFound(f"no rollout of {name} is in progress")
    if verb == "approve" and state.phase != "waiting":
        raise NotFound(f"the rollout of {name} waits for no approval: it is {state.phase}")
    alone = lock_if_free(target.folder)
    if verb == "abort" and alone:
        Rollout(target, DeploySpec(), state, ()).abort(f"asked for: {why}")
        return f"{state.candidate.version.model} is aborted, the champion serves everybody"
    if alone:
        unlock(target.folder)
    store.command(verb, why, state.plan[len(state.done)] if verb == "approve" else "")
    if alone:
        return f"{verb} is noted; no process controls the rollout: repeat the release to go on"
    return f"{verb} is noted for the process that controls the rollout"


class ModelStatus(Frozen):
    """What is served under one model name."""

    name: str
    environment: str
    """dev, staging or production."""

    endpoint: str | None
    """None while no gateway runs."""

    champion: str | None
    ready: bool
    since: float | None
    previous: str | None
    rollout: str | None
    """Phase of the last rollout."""

    candidate: str | None
    weight: float
    reason: str


def status(home: Path) -> list[ModelStatus]:
    found = []
    for place, folder in homes(home).items():
        names = sorted(path.name for path in (folder.absolute() / "serving").glob("*/"))
        found += [_status(folder, name, place) for name in names]
    return found


def _status(home: Path, name: str, place: str) -> ModelStatus:
    target = recorded_target(home, name)
    store = Store(target.folder)
    deployment, state = store.deployment(), store.state()
    try:
        endpoint: str | None = target.endpoint()
    except NotFound:
        endpoint = None
    return ModelStatus(
        name=name,
        environment=place,
        endpoint=endpoint,
        champion=deployment.champion.version.model if deployment else None,
        ready=deployment is not None and is_serving(target, deployment.champion.slot),
        since=deployment.since if deployment else None,
        previous=deployment.previous.version.model if deployment and deployment.previous else None,
        rollout=state.phase if state else None,
        candidate=state.candidate.version.model if state else None,
        weight=state.weight if state and state.phase in ACTIVE else 0,
        reason=state.reason if state else "",
    )


def up(target: Target, *, ready_timeout_s: float = 300) -> str:
    """Serve the recorded champion again, after a reboot or `down`; returns the endpoint."""
    deployment: Deployment | None = Store(target.folder).deployment()
    if deployment is None:
        raise NotFound(f"nothing of {target.name} was ever deployed here")
    lock(target.folder)
    try:
        champion = deployment.champion
        target.start(champion.version, champion.slot)
        _wait_ready(target, champion, ready_timeout_s)
        target.set_weights({champion.slot: 100}, champion.slot)
        return target.endpoint()
    finally:
        unlock(target.folder)


def down(home: Path) -> list[str]:
    """Stop every engine and gateway that was started below `home`; returns the model names."""
    found = status(home)
    for model in found:
        recorded_target(homes(home)[model.environment], model.name).down()
    return [model.name for model in found]
