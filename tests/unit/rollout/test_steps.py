"""The state machine on a place that exists only in memory, cut short at every single action."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainyard import rollout
from trainyard.errors import Waiting
from trainyard.recipe.deploy import Canary, DeploySpec
from trainyard.rollout import Rollout
from trainyard.rollout.state import Store, unlock
from trainyard.rollout.target import FOR_GOOD, Observation, Readiness, ServedVersion, Slot, Terms

STRATEGY = Canary(
    steps=(10, 50), min_requests=4, requests=8, margin=0.1, look_s=0.001, replay=False
)
SPEC = DeploySpec(strategy=STRATEGY, soak_s=0.001, lease_s=2)


class Killed(BaseException):
    """kill -9: whatever the controller still wants to do, it cannot."""


class World:
    """Engines and traffic; it outlives its controllers."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = "m", folder
        self.engines: dict[Slot, ServedVersion] = {}
        self.weights: dict[Slot, float] = {}
        self.champion: Slot | None = None
        self.records: list[dict[str, Any]] = []
        self.bad: set[str] = set()
        self.calls = 0
        self.die_at: int | None = None
        self.dead = False

    def _act(self) -> None:
        self.calls += 1
        if self.dead or self.calls == self.die_at:
            self.dead = True
            raise Killed

    def endpoint(self) -> str:
        return "http://m"

    def start(self, version: ServedVersion, slot: Slot) -> None:
        self._act()
        self.engines[slot] = version

    def ready(self, slot: Slot) -> Readiness:
        self._act()
        return Readiness(ready=slot in self.engines, alive=slot in self.engines)

    def set_weights(
        self, weights: Mapping[Slot, float], champion: Slot, terms: Terms = FOR_GOOD
    ) -> None:
        self._act()
        assert sum(weights.values()) == 100
        assert set(weights) <= set(self.engines), "traffic for an engine that is not there"
        self.weights, self.champion = dict(weights), champion

    def renew(self, lease_s: float) -> bool:
        self._act()
        return True

    def observe(self, since: int) -> Observation:
        """Every look finds four more answers of each engine that has traffic."""
        self._act()
        for slot in (slot for slot, weight in self.weights.items() if weight):
            version = self.engines[slot]
            for _ in range(4):
                self.records.append(
                    {
                        "digest": version.digest,
                        "ok": version.digest not in self.bad,
                        "seconds": 0.1,
                        "at": 0.0,
                        "flags": [],
                        "source": "live",
                        "variant": "champion" if slot == self.champion else "canary",
                        "request_id": "r",
                    }
                )
        found = tuple(self.records[since : since + 8])
        return Observation(boot="b", next=since + len(found), lost=0, records=found)

    def replay_headers(self) -> Mapping[str, str]:
        return {}

    def stop(self, slot: Slot) -> None:
        self._act()
        assert not self.weights.get(slot), "an engine with traffic was stopped"
        self.engines.pop(slot, None)

    def down(self) -> None:
        self.engines.clear()

    def lease_runs_out(self) -> None:
        if self.champion is not None:
            self.weights = {self.champion: 100}

    def serves(self) -> str:
        """Digest of whoever has all the traffic."""
        assert self.champion is not None
        assert self.weights[self.champion] == 100
        return self.engines[self.champion].digest


def version(digest: str) -> ServedVersion:
    return ServedVersion(name="m", digest=digest * 64, adapter=Path("a"), base=Path("b"))


OLD, NEW, LATER = version("a"), version("b"), version("c")


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    assert rollout.run(found, OLD, spec=SPEC).promoted
    found.calls = 0
    return found


def actions_of_a_rollout(folder: Path) -> int:
    """How often a whole rollout of a good version acts on its target."""
    world = World(folder)
    rollout.run(world, OLD, spec=SPEC)
    world.calls = 0
    rollout.run(world, NEW, spec=SPEC)
    return world.calls


def test_a_good_version_ends_with_everything(world: World) -> None:
    done = rollout.run(world, NEW, spec=SPEC)
    assert done.promoted
    assert world.serves() == NEW.digest
    assert list(world.engines) == ["green"]


def test_a_bad_version_ends_with_nothing(world: World) -> None:
    world.bad = {NEW.digest}
    done = rollout.run(world, NEW, spec=SPEC)
    assert done.state.phase == "aborted"
    assert world.serves() == OLD.digest
    assert list(world.engines) == ["blue"]


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
def test_killed_at_any_action_it_can_be_taken_up(
    world: World, tmp_path_factory: pytest.TempPathFactory, bad: bool
) -> None:
    total = actions_of_a_rollout(tmp_path_factory.mktemp("count"))
    for at in range(1, total + 1):
        fresh = World(tmp_path_factory.mktemp("killed"))
        rollout.run(fresh, OLD, spec=SPEC)
        fresh.bad = {NEW.digest} if bad else set()
        fresh.calls, fresh.die_at = 0, at
        try:
            rollout.run(fresh, NEW, spec=SPEC)
        except Killed:
            unlock(fresh.folder)  # the lock ends with its process
        fresh.dead, fresh.die_at = False, None
        fresh.lease_runs_out()
        again = rollout.run(fresh, NEW, spec=SPEC)
        assert again.state.phase == ("aborted" if bad else "done"), f"killed at action {at}"
        assert fresh.serves() == (OLD if bad else NEW).digest, f"killed at action {at}"
        assert len(fresh.engines) == 1, f"killed at action {at}"


def test_killed_at_any_action_it_gives_way_to_the_next_version(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    total = actions_of_a_rollout(tmp_path_factory.mktemp("count"))
    for at in range(1, total + 1):
        fresh = World(tmp_path_factory.mktemp("killed"))
        rollout.run(fresh, OLD, spec=SPEC)
        fresh.calls, fresh.die_at = 0, at
        try:
            rollout.run(fresh, NEW, spec=SPEC)
        except Killed:
            unlock(fresh.folder)
        fresh.dead, fresh.die_at = False, None
        fresh.lease_runs_out()
        assert rollout.run(fresh, LATER, spec=SPEC).promoted, f"killed at action {at}"
        assert fresh.serves() == LATER.digest
        assert len(fresh.engines) == 1, f"killed at action {at}"


ASKED = SPEC.model_copy(update={"strategy": STRATEGY.model_copy(update={"approve_at": (50, 100)})})


def ask_and_answer(world: World, yes: bool = True, at_most: int = 9) -> Rollout:
    """Run until the end; answer each question that comes up."""
    for _ in range(at_most):
        try:
            return rollout.run(world, NEW, spec=ASKED)
        except Waiting:
            assert world.serves() == OLD.digest, "nobody gets the candidate while people think"
            rollout.begin(world, NEW, spec=ASKED).answer(yes, "I looked at it")
    raise AssertionError("asked for ever")


def test_a_person_is_asked_between_steps_and_the_champion_serves_meanwhile(world: World) -> None:
    with pytest.raises(Waiting, match=r"go to 50 %. 10 %: .*trainyard rollout m approve"):
        rollout.run(world, NEW, spec=ASKED)
    state = Store(world.folder).state()
    assert state is not None
    assert (state.phase, state.weight, world.serves()) == ("waiting", 0, OLD.digest)
    assert set(world.engines) == {"blue", "green"}, "both stay warm"
    with pytest.raises(Waiting):
        rollout.run(world, NEW, spec=ASKED)  # asking again changes nothing
    done = ask_and_answer(world)
    assert [(r.step, r.decision) for r in done.state.done] == [
        ("start", "go_on"), ("10 %", "go_on"), ("approve 50 %", "go_on"), ("50 %", "go_on"),
        ("approve 100 %", "go_on"), ("100 %", "promoted"), ("soak", "go_on"),
    ]  # fmt: skip
    assert done.state.done[2].reason == "approved: I looked at it"
    assert world.serves() == NEW.digest


def test_a_no_ends_it(world: World) -> None:
    done = ask_and_answer(world, yes=False)
    assert (done.state.phase, done.state.reason) == ("aborted", "asked for: I looked at it")
    assert world.serves() == OLD.digest
    assert list(world.engines) == ["blue"]


def test_an_answer_to_one_question_is_none_to_the_next(world: World) -> None:
    with pytest.raises(Waiting):
        rollout.run(world, NEW, spec=ASKED)
    Store(world.folder).command("approve", "yes", "approve 50 %")
    with pytest.raises(Waiting, match="go to 100 %"):
        rollout.run(world, NEW, spec=ASKED)
    Store(world.folder).command("approve", "stale", "approve 50 %")
    with pytest.raises(Waiting, match="go to 100 %"):
        rollout.run(world, NEW, spec=ASKED)


def test_whoever_promotes_is_asked_nothing_more(world: World) -> None:
    with pytest.raises(Waiting):
        rollout.run(world, NEW, spec=ASKED)
    Store(world.folder).command("promote", "it is urgent")
    assert rollout.run(world, NEW, spec=ASKED).promoted


def test_an_engine_that_ended_meanwhile_is_brought_up_again(world: World) -> None:
    with pytest.raises(Waiting):
        rollout.run(world, NEW, spec=ASKED)
    world.engines.pop("green")  # a reboot, some days later
    assert ask_and_answer(world).promoted


def test_killed_at_any_action_it_asks_no_question_twice_and_skips_none(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    counted = World(tmp_path_factory.mktemp("count"))
    rollout.run(counted, OLD, spec=SPEC)
    counted.calls = 0
    ask_and_answer(counted)
    for at in range(1, counted.calls + 1):
        fresh = World(tmp_path_factory.mktemp("killed"))
        rollout.run(fresh, OLD, spec=SPEC)
        fresh.calls, fresh.die_at = 0, at
        try:
            done = ask_and_answer(fresh)
        except Killed:
            unlock(fresh.folder)
            fresh.dead, fresh.die_at = False, None
            fresh.lease_runs_out()
            done = ask_and_answer(fresh)
        steps = [r.step for r in done.state.done]
        assert steps.count("approve 50 %") == steps.count("approve 100 %") == 1
        assert fresh.serves() == NEW.digest, f"killed at action {at}"
        assert len(fresh.engines) == 1, f"killed at action {at}"


def test_a_version_that_waits_gives_way_to_the_next_one(world: World) -> None:
    with pytest.raises(Waiting):
        rollout.run(world, NEW, spec=ASKED)
    assert rollout.run(world, LATER, spec=SPEC).promoted
    assert len(world.engines) == 1


def test_a_rollback_ends_a_rollout_that_waits(world: World) -> None:
    with pytest.raises(Waiting):
        rollout.run(world, NEW, spec=ASKED)
    assert rollout.rollback(world, "we changed our minds").warm
    assert world.serves() == OLD.digest
    assert list(world.engines) == ["blue"]


def test_a_rollout_interrupted_by_its_user_leaves_the_champion_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolling = rollout.begin(world, NEW, spec=SPEC)
    rolling.step()

    def interrupt(_lease_s: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(world, "renew", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rolling.step()
    assert world.serves() == OLD.digest
    assert list(world.engines) == ["blue"]
    state = Store(world.folder).state()
    assert state is not None
    assert (state.phase, state.reason) == ("aborted", "interrupted: KeyboardInterrupt ")
