"""Run a stage as a deployment of its own, in the work pool that the deployment names."""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling, Crashed
from pydantic import BaseModel

from tasks import turn
from tasks.server import Server, server
from trainyard.errors import InputError, TrainingFailed, Unavailable
from trainyard.gpu_pools import GpuPool, suitable
from trainyard.recipe.resources import ResourcesSpec
from trainyard.release.job import Job

logger = logging.getLogger("trainyard.dispatch")

Found = TypeVar("Found", bound=BaseModel)

UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
POLL_S = (0.5, 5.0)
"""How often a job is asked for: often at first, and a long one seldom."""
CRASHES = 2
"""How often a job whose worker or host was lost is started again; it goes on where it was."""
LOOK_S = 30.0
"""How often a job's heartbeats and its pool's workers are looked at."""
HEARTBEAT_S = 30
SILENT_S = 120.0
"""A running job that has not been heard of for so long, while the server was there, is gone."""
NO_WORKER_S = 600.0
"""How long a job may wait for a worker that was there when it was sent."""


ONE_MACHINE = ResourcesSpec()


def flow_run_id() -> str | None:
    """Return the id of the flow run that this code is in."""
    return str(this_run.id) if this_run.id else None


def once(
    where: str | Sequence[GpuPool],
    stage: str,
    job: Job,
    *,
    parameters: dict[str, BaseModel | None],
    find: Callable[[], Found | None],
    nodes: int = 1,
) -> Found:
    """Return what `find` finds; when there is nothing, run the deployment that makes it first.

    `nodes` is how many machines it is made on.
    """
    found = find()
    if found is not None:
        return found
    need = job.recipe.resources.model_copy(update={"nodes": nodes})
    names = [where] if isinstance(where, str) else suitable(where, need)
    given: dict[str, BaseModel | None] = {"job": job, **parameters}
    plain = {name: value and value.model_dump(mode="json") for name, value in given.items()}
    failed: TrainingFailed | None = None
    try:
        run(names, plain, stage, recipe=job.recipe.name, need=need)
    except TrainingFailed as error:
        failed = error
    made = find()  # the manifest is the truth: a run may be lost after it finished its work
    if made is not None:
        return made.model_copy(update={"skipped": False})
    raise failed or TrainingFailed(
        f"{stage} by {names[0]} completed, and its manifest is not in this home folder: the "
        "workers must share it"
    )


def run(
    deployments: str | Sequence[str],
    parameters: dict[str, Any],
    stage: str,
    *,
    recipe: str = "",
    need: ResourcesSpec = ONE_MACHINE,
) -> None:
    """Wait for this recipe's turn, start the deployment and wait for its end.

    Of several deployments, the first with a worker is taken. What was made is found by its stage's
    manifest. Raises InputError without such a deployment, or one of several machines, Unavailable
    without a worker, TrainingFailed when the run ends otherwise than completed.
    """
    names = [deployments] if isinstance(deployments, str) else list(deployments)
    tags = turn.tags_of(recipe, need.priority)
    with server() as prefect:
        for attempt in range(1, CRASHES + 2):
            name, pool = prefect.ask(lambda client: _with_worker(client, names))
            variables = prefect.ask(partial(_job_variables, pool=pool, need=need))
            turn.wait(prefect, pool, recipe, need.priority)
            # The attempt is part of the key: with a fixed one, a retry would get the old failed run
            key = f"{this_run.id}:{stage}:{this_run.run_count}:{attempt}"
            started = _start(prefect, name, parameters, variables, tags=tags, key=key)
            state = _follow(prefect, started, pool)
            if state.is_completed():
                return
            said = f"{stage} by {name} ended {state.name}: {state.message}"
            if not state.is_crashed() or attempt > CRASHES:
                raise TrainingFailed(said)
            logger.warning("%s; starting it again", said)


def _job_variables(client: SyncPrefectClient, pool: str, need: ResourcesSpec) -> dict[str, Any]:
    """Return what a Kubernetes pool makes the Job of: on other pools the worker's machine is it."""
    kind = client.read_work_pool(pool).type
    if kind != "kubernetes" and need.nodes > 1:
        raise InputError(
            f"resources.nodes is {need.nodes} and work pool {pool} is of type {kind}: only a "
            "Kubernetes pool starts several machines"
        )
    hardware = {"gpu_count": need.gpus, "nodes": need.nodes} if need.gpus else {}
    beat = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}}
    return beat | (hardware if kind == "kubernetes" else {})


def _start(
    prefect: Server,
    name: str,
    parameters: dict[str, Any],
    variables: dict[str, Any],
    *,
    tags: list[str],
    key: str,
) -> FlowRun:
    """Start it once: asked again after an outage, the server returns the run that it made."""

    def start(_: SyncPrefectClient) -> FlowRun:
        started = run_deployment(
            name,
            parameters=parameters,
            idempotency_key=key,
            tags=tags,
            job_variables=variables,
            timeout=0,
        )
        return cast(FlowRun, started)  # a coroutine only inside an event loop

    return prefect.ask(start)


def _follow(prefect: Server, started: FlowRun, pool: str) -> State[Any]:
    """Wait for the end of a run, saying its states as they come."""
    begin = time.monotonic()
    said, looked, heard = None, begin, begin
    beat: datetime | None = None
    unserved: float | None = None
    while True:
        state = prefect.ask(lambda client: client.read_flow_run(started.id)).state
        assert state is not None
        if state.name != said:
            said, heard = state.name, time.monotonic()
            logger.info("%s in %s: %s", started.name, pool, said)
        if state.is_final():
            return state
        now = time.monotonic()
        if now - looked > 2 * LOOK_S:
            heard = now  # the server was away, and heard nothing either
        if now - looked > LOOK_S:
            looked = now
            newest = prefect.ask(lambda client: _last_heartbeat(client, started.id))
            heard = now if newest != beat or beat is None else heard
            beat = newest
            served = prefect.ask(lambda client: _is_ready(client, pool))
            if served or state.is_running():
                unserved = None
            elif unserved is None:
                unserved = now
                logger.warning("%s; it waits for one", no_worker(pool, started.name))
        if state.is_running() and now - heard > SILENT_S:
            return _lost(prefect, started, now - heard)
        if unserved and now - unserved > NO_WORKER_S:
            prefect.ask(
                lambda client: client.set_flow_run_state(started.id, Cancelling(), force=True)
            )
            raise Unavailable(no_worker(pool, started.name))
        time.sleep(min(max(POLL_S[0], (now - begin) / 20), POLL_S[1]))


def _lost(prefect: Server, run: FlowRun, silent_s: float) -> State[Any]:
    """Give back the place of a run whose host or worker died, and who cannot say so itself."""
    state: State[Any] = Crashed(
        message=f"no heartbeat for {silent_s:.0f} s: its host or its worker is gone"
    )
    prefect.ask(lambda client: client.set_flow_run_state(run.id, state, force=True))
    return state


def _last_heartbeat(client: SyncPrefectClient, run: UUID) -> datetime | None:
    """Return when the run was last heard of; None for one that sends no heartbeats."""
    wanted = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
        "order": "DESC",
    }
    reply = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    reply.raise_for_status()
    found = reply.json()["events"]
    return datetime.fromisoformat(found[0]["occurred"]) if found else None


def _with_worker(client: SyncPrefectClient, deployments: Sequence[str]) -> tuple[str, str]:
    """Return the first deployment that a worker polls for, and its pool."""
    idle: list[str] = []
    for name in deployments:
        try:
            pool = client.read_deployment_by_name(name).work_pool_name
        except ObjectNotFound:
            raise InputError(f"no deployment {name}: `make up` makes it") from None
        if pool is None:
            raise InputError(
                f"the work pool of {name} is not there any more: `make pools`, then deploy again"
            )
        if _is_ready(client, pool):
            return name, pool
        idle.append(no_worker(pool, name))
    raise Unavailable("; ".join(idle))


def _is_ready(client: SyncPrefectClient, pool: str) -> bool:
    try:
        state = client.read_work_pool(pool).status
    except ObjectNotFound:
        return False
    return state is None or state.value == "READY"


def no_worker(pool: str, name: str) -> str:
    return (
        f"work pool {pool} of {name} is not_ready: no worker polls it; "
        f"start one with `prefect worker start --pool {pool}`"
    )


def cancel_children(
    flow: "Flow[..., Any]",  # noqa: ARG001  (the worker calls hooks with these three names)
    flow_run: FlowRun,
    state: "State[Any]",  # noqa: ARG001
) -> None:
    """Hook for a cancelled or crashed release."""
    children = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(str(flow_run.id))]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
    )
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=children):
            client.set_flow_run_state(child.id, Cancelling(), force=True)
