"""Wait for a place in a GPU pool: fair between recipes, without a process in the pool that waits.

Who waits says so in the tags of its own run, where everybody sees it; each one computes the same
order from them. The order is a courtesy: a wrong one lets a job wait in the pool's queue. That no
GPU has two jobs is `trainyard.slots`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run as this_run

from tasks.server import Server
from trainyard.turns import Queued, next_up

logger = logging.getLogger("trainyard.dispatch")

POLL_S = 2.0
REFRESH_S = 30.0
FORGOTTEN = timedelta(seconds=150)
"""Who has not said for so long that it waits is gone: its host died before Prefect knew."""
RECENT = 200
ACTIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def tags_of(recipe: str, priority: int) -> list[str]:
    """Tags of every job in a GPU pool, and of every release that waits for one."""
    return [f"recipe:{recipe}", f"priority:{priority}"]


def wait(server: Server, pool: str, recipe: str, priority: int) -> None:
    """Return when it is this recipe's turn in the work pool; at once in one without a limit."""
    mine = str(this_run.id)
    with _announced(server, pool, recipe, priority) as announce:
        said: int | None = None
        while True:
            announce()
            rank = server.ask(lambda client: _rank(client, pool, mine))
            if rank == 0:
                return
            if rank != said:
                said = rank
                logger.info("waiting for a place in %s: %d jobs have to end before", pool, rank)
            time.sleep(POLL_S * min(rank, 10))


@contextmanager
def _announced(
    server: Server, pool: str, recipe: str, priority: int
) -> Iterator[Callable[[], None]]:
    me = UUID(str(this_run.id))
    before = server.ask(lambda client: client.read_flow_run(me)).tags
    tags = sorted({*before, *tags_of(recipe, priority), waits_for(pool)})
    said = 0.0

    def announce() -> None:
        nonlocal said
        if not said or time.monotonic() - said > REFRESH_S:
            server.ask(lambda client: client.update_flow_run(me, tags=tags))
            said = time.monotonic()

    try:
        yield announce
    finally:
        server.ask(lambda client: client.update_flow_run(me, tags=before))


def waits_for(pool: str) -> str:
    return f"waits for {pool}"


def _rank(client: SyncPrefectClient, pool: str, mine: str) -> int:
    """Return 0 when `mine` may start, else how many jobs have to end before it may."""
    limit = client.read_work_pool(pool).concurrency_limit
    if limit is None:
        return 0
    here = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    active = client.read_flow_runs(work_pool_filter=here, flow_run_filter=_in(ACTIVE))
    recent = client.read_flow_runs(
        work_pool_filter=here, sort=FlowRunSort.START_TIME_DESC, limit=RECENT
    )
    waiting = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[waits_for(pool)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
        )
    )
    last_start: dict[str, datetime] = {}
    for run in recent:
        if run.start_time:
            last_start.setdefault(_tag(run, "recipe"), run.start_time)
    order = next_up(
        [_waiting(run) for run in _alive(waiting)],
        Counter(_tag(run, "recipe") for run in active),
        last_start,
        places=len(waiting),
    )
    free = limit - len(active)
    place = order.index(mine) if mine in order else len(order)
    return max(0, place - free + 1)


def _alive(waiting: list[FlowRun]) -> list[FlowRun]:
    newest = max((run.updated for run in waiting if run.updated), default=None)
    return [run for run in waiting if newest and run.updated and newest - run.updated < FORGOTTEN]


def _waiting(run: FlowRun) -> Queued:
    since = run.start_time or run.expected_start_time
    assert since is not None
    return Queued(str(run.id), _tag(run, "recipe"), int(_tag(run, "priority") or 0), since)


def _tag(run: FlowRun, key: str) -> str:
    return next((tag.partition(":")[2] for tag in run.tags if tag.startswith(f"{key}:")), "")


def _in(states: list[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
