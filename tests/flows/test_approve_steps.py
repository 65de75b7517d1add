"""A rollout that asks a person between its steps: a suspended run on a real server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run

from tasks.rollout import take_steps
from tests.unit.rollout.test_steps import ASKED, NEW, OLD, SPEC, World
from trainyard import rollout
from trainyard.errors import Waiting
from trainyard.recipe.approval import ApprovalSpec
from trainyard.rollout.state import Store

WORLDS: dict[str, World] = {}
NAMED = ASKED.model_copy(update={"approval": ApprovalSpec(by=("Ann",))})
asked: list[str] = []


@contextmanager
def pausing(question: str) -> Iterator[None]:
    asked.append(question)
    yield


@flow
def roll_out(world: str) -> str:
    """What a release does once its version is registered."""
    controlled = rollout.begin(WORLDS[world], NEW, spec=NAMED, by=str(flow_run.id))
    take_steps(NAMED, controlled, pausing)
    return controlled.state.phase


@pytest.fixture
def world(tmp_path: Path, prefect_server: None) -> World:
    found = WORLDS[str(tmp_path)] = World(tmp_path)
    assert rollout.run(found, OLD, spec=SPEC).promoted
    return found


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


def deployed(client: SyncPrefectClient, world: World) -> tuple[UUID, Callable[[], str | None]]:
    """A run of a deployment, and what a worker does with it whenever it is due."""
    parameters = {"world": str(world.folder)}
    made = client.create_deployment(client.create_flow(roll_out), "asks")
    run = client.create_flow_run_from_deployment(made, parameters=parameters)

    def go_on() -> str | None:
        due = client.read_flow_run(run.id)
        with suppress(Pause):
            run_flow(roll_out, flow_run=due, parameters=parameters, return_type="state")
        state = client.read_flow_run(run.id).state
        return state.name if state else None

    return run.id, go_on


def test_a_run_is_suspended_until_somebody_who_may_says_yes(
    world: World, client: SyncPrefectClient
) -> None:
    run, go_on = deployed(client, world)
    assert go_on() == "Suspended"
    assert "go to 50 %?" in asked[-1]
    assert world.serves() == OLD.digest
    assert client.resume_flow_run(run).status.value == "REJECT", "empty: approves nothing"

    given = {"decision": "approve", "who": "Eve", "why": "why not"}
    client.resume_flow_run(run, run_input=given)
    assert go_on() == "Suspended", "Eve is not named: asked again"
    client.resume_flow_run(run, run_input=given | {"who": "Ann", "why": "10 % went well"})
    assert go_on() == "Suspended", "now for everything"
    assert "go to 100 %?" in asked[-1]
    assert world.serves() == OLD.digest

    Store(world.folder).command("promote", "by the command line meanwhile")
    client.resume_flow_run(run, run_input=given | {"who": "Ann"})
    assert go_on() == "Completed"
    assert world.serves() == NEW.digest
    state = Store(world.folder).state()
    assert state is not None
    assert "approved: Ann: 10 % went well" in [record.reason for record in state.done]


def test_a_no_ends_the_rollout(world: World, client: SyncPrefectClient) -> None:
    run, go_on = deployed(client, world)
    assert go_on() == "Suspended"
    given = {"decision": "reject", "who": "Ann", "why": "not on a Friday"}
    client.resume_flow_run(run, run_input=given)
    assert go_on() == "Completed"
    state = Store(world.folder).state()
    assert state is not None
    assert (state.phase, state.reason) == ("aborted", "asked for: Ann: not on a Friday")
    assert world.serves() == OLD.digest


def test_an_answer_to_what_was_ended_meanwhile_begins_nothing(
    world: World, client: SyncPrefectClient
) -> None:
    run, go_on = deployed(client, world)
    assert go_on() == "Suspended"
    state = Store(world.folder).state()
    assert state is not None
    rollout.Rollout(world, NAMED, state, ()).abort("asked for: on the command line")
    before = world.calls
    given = {"decision": "approve", "who": "Ann", "why": "10 % went well"}
    client.resume_flow_run(run, run_input=given)
    assert go_on() == "Failed"
    said = client.read_flow_run(run).state
    assert said is not None
    assert "was ended meanwhile: asked for: on the command line" in str(said.message)
    assert world.calls == before, "no engine was started, no weight was moved"
    assert rollout.begin(world, NEW, spec=NAMED, by=str(run)).next_step == "start", "tried again"


def test_without_a_deployment_the_next_command_is_said(world: World) -> None:
    @flow
    def by_hand() -> None:
        take_steps(ASKED, rollout.begin(world, NEW, spec=ASKED))

    with pytest.raises(Waiting, match=r"trainyard rollout m approve --why WORDS --home .*, then"):
        by_hand()
    assert world.serves() == OLD.digest
    state = Store(world.folder).state()
    assert state is not None
    assert state.phase == "waiting"
