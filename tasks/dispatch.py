"""Run a stage as a deployment of its own, in the work pool that the deployment names."""

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
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
from prefect.states import Cancelling
from pydantic import BaseModel

from trainyard.errors import InputError, TrainingFailed, Unavailable

Found = TypeVar("Found", bound=BaseModel)

UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]


def flow_run_id() -> str | None:
    """Return the id of the flow run that this code is in."""
    return str(this_run.id) if this_run.id else None


def once(
    deployment: str,
    stage: str,
    *,
    parameters: dict[str, BaseModel | None],
    find: Callable[[], Found | None],
) -> Found:
    """Return what `find` finds; when there is nothing, run the deployment that makes it first."""
    found = find()
    if found is not None:
        return found
    plain = {name: value and value.model_dump(mode="json") for name, value in parameters.items()}
    run(deployment, plain, stage)
    made = find()
    if made is None:
        raise TrainingFailed(
            f"{stage} by {deployment} completed, and its manifest is not in this home folder: the "
            "workers must share it"
        )
    return made.model_copy(update={"skipped": False})


def run(deployment: str, parameters: dict[str, Any], stage: str) -> None:
    """Start the deployment and wait for its end. What it made is found by its stage's manifest.

    The attempt is part of the key: with a fixed one, a retry would get the old failed run back.
    Raises InputError without that deployment, Unavailable without a worker, TrainingFailed when the
    run ends otherwise than completed.
    """
    _require_worker(deployment)
    started = run_deployment(
        deployment,
        parameters=parameters,
        idempotency_key=f"{this_run.id}:{stage}:{this_run.run_count}",
        poll_interval=2,
    )
    if (
        not isinstance(started, FlowRun)
        or started.state is None
        or not started.state.is_completed()
    ):
        state = getattr(started, "state", None)
        said = f"{state.name}: {state.message}" if state else "without a state"
        raise TrainingFailed(f"{stage} by {deployment} ended {said}")


def _require_worker(deployment: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise InputError(f"no deployment {deployment}: `make up` makes it") from None
        pool = found.work_pool_name
        state = client.read_work_pool(pool).status if pool else None
        if state is not None and state.value != "READY":
            raise Unavailable(
                f"work pool {pool} of {deployment} is {state.value.lower()}: no worker polls it; "
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
