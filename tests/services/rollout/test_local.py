"""Rollouts on this machine, with real processes: stub engines behind the real gateway."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.services.rollout.stubs import QUICK, REPLAY, ask, until, version
from trainyard import rollout
from trainyard.errors import InputError, NotFound, Refused
from trainyard.recipe.deploy import AllAtOnce, BlueGreen, DeploySpec
from trainyard.rollout.gateway_target import GatewayTarget, serving_folder
from trainyard.rollout.local import LocalEngines
from trainyard.rollout.state import Store
from trainyard.rollout.target import ServedVersion
from trainyard.version import assemble, digest_of, verify

SPEC = DeploySpec(port=0, strategy=QUICK, soak_s=0.5, lease_s=2, ready_timeout_s=20)


def stub(version: ServedVersion, port: int) -> list[str]:
    behaviour = version.adapter / "behaviour.json"
    program = [sys.executable, "-m", "bench.stub_engine", str(port), "--model", version.model]
    return [*program, "--behaviour", str(behaviour)]


def local_target(home: Path, spec: DeploySpec = SPEC) -> GatewayTarget:
    return GatewayTarget(spec, "m", home, LocalEngines(serving_folder(home, "m"), stub))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[GatewayTarget]:
    found = local_target(tmp_path / "home")
    yield found
    found.down()


@pytest.fixture
def champion(target: GatewayTarget, tmp_path: Path) -> ServedVersion:
    served = version(tmp_path, "aaaaaaaa")
    assert rollout.run(target, served, spec=SPEC).promoted
    return served


def engine_pid(target: GatewayTarget, slot: str) -> int:
    return int(json.loads((target.folder / f"{slot}.json").read_text())["process"]["pid"])


def serving(target: GatewayTarget) -> str:
    return ask(target).headers["x-trainyard-version"]


def test_the_first_version_gets_everything_once_it_is_ready(
    target: GatewayTarget, champion: ServedVersion
) -> None:
    assert serving(target) == champion.digest
    assert target.engine("green") is None


def test_a_good_second_version_is_promoted_step_by_step_without_users(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=SPEC, replay=REPLAY)
    assert [r.step for r in done.state.done] == ["start", "20 %", "50 %", "100 %", "soak"]
    assert done.promoted
    assert done.state.done[1].canary.requests >= QUICK.min_requests
    assert serving(target) == "bbbbbbbb" * 8
    assert target.engine("blue") is None, "the former champion is stopped after the soak"


@pytest.mark.parametrize(
    ("behaviour", "metric"),
    [
        ({"fail": 0.7}, "failed"),
        ({"answer": ""}, "failed"),
        ({"crash_after": 6}, "crash"),
        ({"delay_s": 0.3}, "slower"),
    ],
    ids=["errors", "empty answers", "crash", "slow"],
)
def test_a_bad_version_is_aborted_and_users_never_notice(
    target: GatewayTarget,
    champion: ServedVersion,
    tmp_path: Path,
    behaviour: dict[str, Any],
    metric: str,
) -> None:
    strategy = QUICK.model_copy(update={"min_requests": 60, "requests": 100})
    spec = SPEC.model_copy(update={"strategy": strategy})
    codes: list[int] = []
    stop = threading.Event()

    def user() -> None:
        while not stop.wait(0.02):
            codes.append(ask(target).status_code)

    thread = threading.Thread(target=user)
    thread.start()
    try:
        done = rollout.run(
            target, version(tmp_path, "cccccccc", **behaviour), spec=spec, replay=REPLAY
        )
    finally:
        stop.set()
        thread.join()
    assert done.state.phase == "aborted", done.state.reason
    assert metric in f"{done.state.done[-1].metric} {done.state.reason}" or "not ready at 3" in (
        done.state.reason  # the probe may meet the same fault first
    )
    assert serving(target) == champion.digest
    assert set(codes) == {200}
    assert target.engine("green") is None


def test_an_engine_that_never_becomes_ready_is_given_up(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"ready_timeout_s": 1.5})
    done = rollout.run(target, version(tmp_path, "dddddddd", never_ready=True), spec=spec)
    assert done.state.phase == "aborted"
    assert "not ready within 1.5 s: /health answers 503" in done.state.reason
    assert serving(target) == champion.digest


def test_without_users_and_without_prompts_there_is_no_evidence_and_no_promotion(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    strategy = QUICK.model_copy(update={"step_timeout_s": 1.0})
    spec = SPEC.model_copy(update={"strategy": strategy})
    done = rollout.run(target, version(tmp_path, "eeeeeeee"), spec=spec)
    assert done.state.phase == "aborted"
    assert "not enough evidence within 1 s: 0 canary answers of at least 8" in done.state.reason


def test_the_champion_again_is_nothing_to_do(
    target: GatewayTarget, champion: ServedVersion
) -> None:
    done = rollout.run(target, champion, spec=SPEC)
    assert done.promoted
    assert [r.decision for r in done.state.done] == ["already"]


def test_a_dead_champion_is_brought_up_again(
    target: GatewayTarget, champion: ServedVersion
) -> None:
    os.kill(engine_pid(target, "blue"), signal.SIGKILL)
    assert rollout.run(target, champion, spec=SPEC).promoted
    assert serving(target) == champion.digest


def test_rollback_in_the_soak_is_one_weight_change(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"soak_s": 30.0, "strategy": AllAtOnce()})
    rolling = rollout.begin(target, version(tmp_path, "bbbbbbbb"), spec=spec)
    rolling.step()
    rolling.step()
    assert serving(target) == "bbbbbbbb" * 8
    found = rollout.rollback(target, "a person said so")
    assert found.warm
    assert serving(target) == champion.digest
    assert rolling.step().decision == "roll_back"
    assert rolling.state.phase == "rolled_back"
    assert serving(target) == champion.digest
    assert target.engine("green") is None


def test_rollback_after_the_soak_starts_the_former_champion_again(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"soak_s": 0.0, "strategy": AllAtOnce()})
    assert rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=spec).promoted
    found = rollout.rollback(target, "complaints")
    assert not found.warm
    assert serving(target) == champion.digest
    with pytest.raises(NotFound, match="no former champion"):
        rollout.rollback(target, "again")


def test_what_went_down_comes_up_from_its_record(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    assert rollout.down(tmp_path / "home") == ["m"]
    assert [s.ready for s in rollout.status(tmp_path / "home")] == [False]
    rollout.up(target)
    assert serving(target) == champion.digest
    assert [s.ready for s in rollout.status(tmp_path / "home")] == [True]


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        spec = SPEC.model_copy(update={"port": port})
        busy = local_target(tmp_path / "home", spec)
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"):
            rollout.run(busy, version(tmp_path, "aaaaaaaa"), spec=spec)


CONTROLLER = """
import sys
from pathlib import Path
from tests.services.rollout.stubs import QUICK, REPLAY
from tests.services.rollout.test_local import SPEC, local_target
from trainyard import rollout
from trainyard.rollout.state import Store
from trainyard.rollout.target import ServedVersion
version = ServedVersion.model_validate_json(sys.argv[2])
target = local_target(Path(sys.argv[1]))
strategy = QUICK.model_copy(update={"min_requests": 5000, "requests": 5000})
rollout.run(target, version, spec=SPEC.model_copy(update={"strategy": strategy}), replay=REPLAY)
"""


@contextmanager
def controller(home: Path, served: ServedVersion) -> Iterator[subprocess.Popen[bytes]]:
    """A rollout controlled by another process, which is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(home), served.model_dump_json()],
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: (serving_folder(home, "m") / "looks.jsonl").exists())
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_killed_controller_leaves_the_champion_and_can_be_taken_up(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    candidate = version(tmp_path, "bbbbbbbb")
    with (
        controller(tmp_path / "home", candidate),
        pytest.raises(Refused, match="another process controls"),
    ):
        rollout.begin(target, version(tmp_path, "cccccccc"), spec=SPEC)
    time.sleep(SPEC.lease_s + 0.2)
    forced = [ask(target).headers["x-trainyard-variant"] for _ in range(30)]
    assert set(forced) == {"champion"}, "the lease has run out"
    again = rollout.begin(target, candidate, spec=SPEC, replay=REPLAY)
    assert again.next_step == "20 %", "the finished start is not repeated"
    while again.next_step:
        again.step()
    assert again.promoted
    assert serving(target) == candidate.digest


def test_a_rollout_left_behind_gives_way_to_the_next_version(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    with controller(tmp_path / "home", version(tmp_path, "bbbbbbbb")):
        left = engine_pid(target, "green")
    done = rollout.run(target, version(tmp_path, "cccccccc"), spec=SPEC, replay=REPLAY)
    assert done.promoted
    assert not psutil.pid_exists(left)


def test_a_gateway_that_dies_in_mid_rollout_is_started_again(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    rolling = rollout.begin(target, version(tmp_path, "bbbbbbbb"), spec=SPEC, replay=REPLAY)
    rolling.step()
    rolling.step()
    gateway = target.ensure_gateway()
    os.kill(gateway.process.pid, signal.SIGKILL)
    while rolling.next_step:
        rolling.step()
    assert rolling.promoted
    assert serving(target) == "bbbbbbbb" * 8


def test_a_person_may_promote_pause_and_abort(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with pytest.raises(NotFound, match="no rollout of m is in progress"):
        rollout.command(home, "m", "abort", "nothing is there")
    slow = QUICK.model_copy(update={"min_requests": 5000, "requests": 5000})
    spec = SPEC.model_copy(update={"strategy": slow})
    rolling = rollout.begin(target, version(tmp_path, "bbbbbbbb"), spec=spec, replay=REPLAY)
    rolling.step()
    rollout.command(home, "m", "pause", "lunch")
    resume = threading.Timer(1.0, rollout.command, (home, "m", "promote", "I looked at it"))
    resume.start()
    began = time.monotonic()
    assert rolling.step().reason == "asked for: I looked at it"
    assert time.monotonic() - began >= 1.0
    rollout.command(home, "m", "abort", "on second thoughts")
    assert rolling.step().decision == "abort"
    assert rolling.state.reason == "asked for: on second thoughts"
    assert serving(target) == champion.digest


def test_an_abort_cut_short_is_finished_by_the_next_rollout(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    bad = version(tmp_path, "bbbbbbbb")
    rolling = rollout.begin(target, bad, spec=SPEC, replay=REPLAY)
    rolling.step()
    left = engine_pid(target, "green")
    state = rolling.state.model_copy(update={"phase": "aborting", "reason": "too slow"})
    Store(target.folder).save(state)
    assert rollout.run(target, champion, spec=SPEC).promoted
    assert not psutil.pid_exists(left)
    assert serving(target) == champion.digest


def test_blue_green_compares_unseen_and_then_changes_once(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    strategy = BlueGreen(min_requests=8, requests=12, margin=0.1, look_s=0.4)
    spec = SPEC.model_copy(update={"strategy": strategy})
    done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=spec, replay=REPLAY)
    assert [r.step for r in done.state.done] == ["start", "shadow", "100 %", "soak"]
    assert done.state.done[1].weight == 0
    assert done.state.done[1].canary.requests >= 8
    assert done.promoted


def test_a_bad_candidate_in_the_shadow_is_seen_by_nobody(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    strategy = QUICK.model_copy(update={"shadow_pct": 100.0, "replay": False})
    spec = SPEC.model_copy(update={"strategy": strategy})
    variants: set[str] = set()
    stop = threading.Event()

    def user() -> None:
        while not stop.wait(0.02):
            variants.add(ask(target).headers["x-trainyard-variant"])

    thread = threading.Thread(target=user)
    thread.start()
    try:
        done = rollout.run(target, version(tmp_path, "cccccccc", answer=""), spec=spec)
    finally:
        stop.set()
        thread.join()
    assert [r.step for r in done.state.done] == ["start", "shadow"]
    assert done.state.phase == "aborted"
    assert "in a row" in done.state.reason
    assert variants == {"champion"}


def test_rollback_ends_a_canary_whose_controller_is_dead(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    with controller(tmp_path / "home", version(tmp_path, "bbbbbbbb")):
        left = engine_pid(target, "green")
    found = rollout.rollback(target, "nobody watches it")
    assert (found.warm, found.back_to) == (True, champion.model)
    assert serving(target) == champion.digest
    assert not psutil.pid_exists(left)


def test_a_first_version_that_fails_leaves_nothing_running(
    target: GatewayTarget, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"ready_timeout_s": 1.0})
    done = rollout.run(target, version(tmp_path, "aaaaaaaa", never_ready=True), spec=spec)
    assert done.state.phase == "aborted"
    with pytest.raises(NotFound, match="no gateway runs"):
        target.endpoint()
    assert target.engine("blue") is None


def test_a_version_altered_in_mid_canary_gets_no_more_weight_and_the_champion_has_everything(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "weights").write_text("trained")
    parts: dict[str, Path | str] = {"gate.json": "PASS"}
    made = assemble(tmp_path / "made", "support", digest_of(adapter), adapter, parts)
    rolling = rollout.begin(target, version(tmp_path, "bbbbbbbb"), spec=SPEC, replay=REPLAY)
    rolling.prove = partial(verify, made.folder)
    assert [rolling.step().step, rolling.step().step] == ["start", "20 %"]
    (made.folder / "gate.json").write_text("FAIL")
    record = rolling.step()
    assert (record.step, record.decision, record.weight) == ("50 %", "abort", 20)
    assert "gate.json was changed" in record.reason
    assert rolling.state.phase == "aborted"
    assert serving(target) == champion.digest
