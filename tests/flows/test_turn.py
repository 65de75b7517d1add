"""Whose turn it is and who fell silent, as a real server knows it. No job runs here."""

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Running, Scheduled

from tasks import dispatch, turn
from tasks.server import server

POOL = "turns"


@flow(name="nothing")
def nothing() -> None: ...


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name=POOL, type="process", concurrency_limit=2)
        client.create_work_pool(pool, overwrite=True)
        yield client


@pytest.fixture
def make(client: SyncPrefectClient) -> Callable[..., FlowRun]:
    def make(*tags: str) -> FlowRun:
        return client.create_flow_run(nothing, state=Running(), tags=tags)

    return make


def test_the_order_is_read_from_the_tags_of_those_who_wait(
    client: SyncPrefectClient, make: Callable[..., FlowRun]
) -> None:
    waits = turn.waits_for(POOL)
    flood = [make(waits, *turn.tags_of("flood", 0)) for _ in range(3)]
    other = make(waits, *turn.tags_of("other", 0))
    urgent = make(waits, *turn.tags_of("urgent", 9))
    done = make(waits, *turn.tags_of("done", 9))
    client.set_flow_run_state(done.id, Completed(), force=True)
    ranks = [turn._rank(client, POOL, str(run.id)) for run in (urgent, flood[0], other, *flood[1:])]
    assert ranks == [0, 0, 1, 2, 3]  # two places: the first two may start
    busy = client.create_deployment(
        flow_id=client.create_flow(nothing), name="turns", work_pool_name=POOL
    )
    client.create_flow_run_from_deployment(busy, state=Scheduled(), tags=turn.tags_of("flood", 0))
    ranks = [turn._rank(client, POOL, str(run.id)) for run in (urgent, other, *flood)]
    client.delete_deployment(busy)
    assert ranks == [0, 1, 2, 3, 4]  # one place is left, and flood has its job


def beat(client: SyncPrefectClient, run: FlowRun) -> None:
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
    }
    client.request("POST", "/events", json=[event]).raise_for_status()


def test_a_run_that_fell_silent_is_crashed_and_one_that_is_heard_is_not(
    client: SyncPrefectClient, make: Callable[..., FlowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENT_S", 6.0)
    monkeypatch.setattr(dispatch, "LOOK_S", 0.5)
    monkeypatch.setattr(dispatch, "POLL_S", (0.2, 0.2))
    silent, heard = make(), make()
    beat(client, silent)
    over = threading.Event()

    def beats() -> None:
        with get_client(sync_client=True) as own:
            while not over.wait(0.5):
                beat(own, heard)
            own.set_flow_run_state(heard.id, Completed(), force=True)

    other = threading.Thread(target=beats)
    other.start()
    with server() as prefect:
        lost = dispatch._follow(prefect, silent, None)
        over.set()
        ended = dispatch._follow(prefect, heard, None)
    other.join()
    assert (lost.is_crashed(), ended.is_completed()) == (True, True)
    found = client.read_flow_run(silent.id).state
    assert found is not None
    assert found.message is not None
    assert "no heartbeat for" in found.message
