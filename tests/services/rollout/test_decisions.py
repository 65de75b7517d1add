"""What ends a rollout beside the comparison: users' votes, objectives, a budget that burns."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.services.gateway.conftest import certificate
from tests.services.rollout.stubs import QUICK, REPLAY, ask, version
from tests.services.rollout.test_local import SPEC, local_target, serving
from trainyard import cli, rollout
from trainyard.errors import Waiting
from trainyard.recipe.deploy import Ab, AllAtOnce, SloSpec, TlsFiles
from trainyard.rollout.gateway_target import GatewayTarget
from trainyard.rollout.state import Store


@pytest.fixture
def target(tmp_path: Path) -> Iterator[GatewayTarget]:
    found = local_target(tmp_path / "home")
    yield found
    found.down()


@contextmanager
def users(target: GatewayTarget, think: Callable[[httpx.Response], None]) -> Iterator[None]:
    stop = threading.Event()

    def user() -> None:
        while not stop.wait(0.005):
            think(ask(target))

    threads = [threading.Thread(target=user) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def vote(target: GatewayTarget, answer: httpx.Response, score: float) -> dict[str, bool]:
    said = {"request_id": answer.headers["x-request-id"], "score": score}
    told = httpx.post(f"{target.endpoint()}/v1/feedback", json=said, timeout=60)
    assert told.status_code == 202
    return dict(told.json())


@pytest.mark.parametrize(
    ("liked", "phase", "says"),
    [("canary", "done", "users gain more than 0"), ("champion", "aborted", "users gain less")],
)
def test_users_decide_an_ab_test(
    target: GatewayTarget, tmp_path: Path, liked: str, phase: str, says: str
) -> None:
    rollout.run(target, version(tmp_path, "aaaaaaaa"), spec=SPEC)
    strategy = Ab(min_votes=10, look_s=0.4, step_timeout_s=120, latency_tolerance=50)
    spec = SPEC.model_copy(update={"strategy": strategy})

    def think(answer: httpx.Response) -> None:
        vote(target, answer, 1.0 if answer.headers["x-trainyard-variant"] == liked else -1.0)

    with users(target, think):
        done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=spec, replay=REPLAY)
    assert done.state.phase == phase, done.state.reason
    (split,) = [record for record in done.state.done if record.step == "50 %"]
    assert says in split.reason
    assert split.metric == "feedback"
    assert split.replayed == 0, "nobody votes on a replayed prompt"


def test_an_ab_test_without_votes_ends_at_its_deadline(
    target: GatewayTarget, tmp_path: Path
) -> None:
    rollout.run(target, version(tmp_path, "aaaaaaaa"), spec=SPEC)
    strategy = Ab(min_votes=10, look_s=0.4, step_timeout_s=1.5)
    spec = SPEC.model_copy(update={"strategy": strategy})
    with users(target, lambda _answer: None):
        done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=spec)
    assert done.state.phase == "aborted"
    assert "within 1.5 s: not yet 10 votes on each" in done.state.reason
    assert serving(target) == "aaaaaaaa" * 8


def test_an_answer_is_voted_on_once(target: GatewayTarget, tmp_path: Path) -> None:
    rollout.run(target, version(tmp_path, "aaaaaaaa"), spec=SPEC)
    answer = ask(target)
    assert vote(target, answer, 1.0)["counts"]
    assert not vote(target, answer, -1.0)["counts"]
    scores = [r["score"] for r in target.observe(0).records if r["source"] == "feedback"]
    assert scores == [1.0]


def test_a_candidate_that_breaks_an_objective_is_aborted_though_the_champion_does_too(
    target: GatewayTarget, tmp_path: Path
) -> None:
    rollout.run(target, version(tmp_path, "aaaaaaaa", fail=0.15), spec=SPEC)
    strategy = QUICK.model_copy(
        update={"requests": 400, "margin": 0.3, "replay": True, "latency_tolerance": 50}
    )
    slo = SloSpec(availability=0.99, min_requests=30)
    spec = SPEC.model_copy(update={"strategy": strategy, "slo": slo})
    done = rollout.run(target, version(tmp_path, "bbbbbbbb", fail=0.15), spec=spec, replay=REPLAY)
    assert done.state.phase == "aborted"
    assert "the candidate breaks its objective: availability" in done.state.reason


def test_a_budget_that_burns_in_the_soak_brings_the_former_champion_back(
    target: GatewayTarget, tmp_path: Path
) -> None:
    old = version(tmp_path, "aaaaaaaa")
    rollout.run(target, old, spec=SPEC)
    slo = SloSpec(latency_s=0.2, latency_share=0.99, min_requests=20)
    spec = SPEC.model_copy(update={"strategy": AllAtOnce(), "slo": slo, "soak_s": 120})
    with users(target, lambda _answer: None):
        done = rollout.run(target, version(tmp_path, "bbbbbbbb", delay_s=0.4), spec=spec)
    assert done.state.phase == "rolled_back"
    assert "latency within 0.2 s" in done.state.reason
    assert "times too fast over 1 h" in done.state.reason
    assert serving(target) == old.digest
    deployment = Store(target.folder).deployment()
    assert deployment is not None
    assert deployment.champion.version == old


def test_a_rollout_behind_tls_replays_its_prompts(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "DNS:models.example")
    spec = SPEC.model_copy(update={"tls": TlsFiles(cert=cert, key=key)})
    target = local_target(tmp_path / "home", spec)
    try:
        rollout.run(target, version(tmp_path, "aaaaaaaa"), spec=spec)
        assert target.endpoint().startswith("https://")
        done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=spec, replay=REPLAY)
        assert done.promoted, done.state.reason
    finally:
        target.down()


def test_a_person_answers_by_the_command_line(
    target: GatewayTarget, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = version(tmp_path, "aaaaaaaa"), version(tmp_path, "bbbbbbbb")
    rollout.run(target, old, spec=SPEC)
    strategy = QUICK.model_copy(update={"approve_at": (50.0, 100.0)})
    spec = SPEC.model_copy(update={"strategy": strategy})

    def say(word: str) -> int:
        home = str(tmp_path / "home")
        return cli.main(["rollout", "m", word, "--why", "a reason", "--home", home])

    with pytest.raises(Waiting, match=r"go to 50 %"):
        rollout.run(target, new, spec=spec, replay=REPLAY)
    routes = json.loads((target.folder / "routes.json").read_text())
    assert (routes["weight"], routes["lease_until"]) == (0, None), "no lease runs out meanwhile"
    assert target.engine("green") is not None
    assert say("approve") == 0
    assert "repeat the release to go on" in capsys.readouterr().out
    with pytest.raises(Waiting, match=r"go to 100 %"):
        rollout.run(target, new, spec=spec, replay=REPLAY)
    assert say("abort") == 0
    assert "is aborted, the champion serves everybody" in capsys.readouterr().out
    assert serving(target) == old.digest
    assert target.engine("green") is None
    assert say("approve") == 2
    assert "no rollout of m is in progress" in capsys.readouterr().err
