"""A release and a promotion that wait for a named person, on a real server and by hand.

Traffic goes through real gateways to stub engines.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow

from flows.promote import promote
from flows.release import release
from tests.flows import stored
from tests.unit.test_notify import Inbox, inbox
from trainyard import approval, cli, files, rollout, versions
from trainyard.recipe import read_recipe
from trainyard.registry import open_registry
from trainyard.rollout.gateway_client import GatewayClient
from trainyard.rollout.state import Store
from trainyard.rollout.target import ServedVersion
from trainyard.serving.gateway_config import Routes

__all__ = ["inbox"]

# mlflow maps its tables while a release runs; a warning as an error would stop that for good
pytestmark = pytest.mark.filterwarnings("default")

GATES: list[Any] = ["accuracy >= 0.9", {"id": "parity", "metric": "parity", "severity": "warn"}]
YES = {"decision": "approve", "who": "ada", "why": "read the report"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[Path]:
    repository, folder = Path.cwd(), tmp_path_factory.mktemp("approval")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stored.make_folder(folder, repository)
        (folder / "bench").symlink_to(repository / "bench")  # the stub engine runs from here
        patch.setattr(rollout, "engine_command", lambda _spec: stub)
        (folder / "deployments").unlink()
        for name, text in {"laptop": "{serves: production}", "staging": "{serves: staging}",
                           "dev": "{serves: dev}",
                           "production": "{serves: production}"}.items():  # fmt: skip
            files.write_text(folder / f"deployments/environments/{name}.yaml", text)
        yield folder
        rollout.down(stored.HOME)


def stub(version: ServedVersion, port: int) -> list[str]:
    return [sys.executable, "-m", "bench.stub_engine", str(port), "--model", version.model]


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    """Trained and evaluated. Whoever is asked by another list of names is asked anew."""
    recipe = stored.recipe_file(Path("recipe.yaml"), GATES, seed=1)
    stored.Finished(recipe).evaluate(recipe, parity=None)
    return recipe


def asking(*by: str, expires_h: float = 24) -> dict[str, Any]:
    return {"deploy.approval": {"by": list(by), "expires_h": expires_h}}


class Deployed:
    """One run of a deployment, driven as a worker does: again and again until it is over."""

    def __init__(self, flow: "Flow[..., Any]", parameters: dict[str, Any]) -> None:
        self.flow, self.parameters = flow, parameters
        with get_client(sync_client=True) as client:
            deployment = client.create_deployment(client.create_flow(flow), "waits")
            self.id = client.create_flow_run_from_deployment(deployment, parameters=parameters).id

    def go_on(self) -> Any:
        with get_client(sync_client=True) as client:
            due = client.read_flow_run(self.id)
        with suppress(Pause):
            run_flow(self.flow, flow_run=due, parameters=self.parameters, return_type="state")
        return self.state

    def resume(self, given: dict[str, str] | None) -> str:
        with get_client(sync_client=True) as client:
            return str(client.resume_flow_run(self.id, run_input=given).status.value)

    @property
    def state(self) -> Any:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id).state


def served() -> dict[str, str]:
    return {m.environment: m.champion or "" for m in rollout.status(stored.HOME)}


def summary_of(recipe: Path) -> dict[str, Any]:
    """Of the newest run of one recipe."""
    found = [files.read_json(p) for p in Path(".trainyard/runs").glob("*/summary.json")]
    mine = [one for one in found if one["recipe_path"] == str(recipe)]
    return dict(max(mine, key=lambda one: files.digest_json(one) and one["run_id"]))


def registry_of(recipe: Path) -> Any:
    return open_registry(read_recipe(recipe).register.registry, stored.HOME)


def test_a_version_moves_from_staging_to_production_as_it_is_once_a_named_person_says_yes(
    recipe: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERTS", inbox.address)
    overrides = {**asking("ada", "grace"), "notify.to": ["env:ALERTS"]}
    done = release(recipe=str(recipe), overrides=overrides, environment="staging")
    digest = registry_of(recipe).aliases("stored")["staging"]
    assert served() == {"staging": f"stored@{digest[:12]}"}  # nobody was asked for staging

    assert cli.main(["promote", "stored@staging"]) == 3
    run = Deployed(promote, {"name": "stored", "version": "staging", "to": "production"})
    assert run.go_on().name == "Suspended"
    waiting = [m for m in inbox.got if "waits for an approval" in m["title"]]
    assert [m["title"] for m in waiting] == [
        f"stored@{digest[:12]} waits for an approval for production"
    ]
    assert run.resume(None) == "REJECT"  # an empty resume approves nothing
    assert run.resume({"decision": "maybe", "who": "ada", "why": "x"}) == "REJECT"
    assert run.resume(YES | {"who": "eve"}) == "ACCEPT"
    assert run.go_on().name == "Suspended"  # and asks again
    assert "production" not in served()

    run.resume(YES)
    assert run.go_on().is_completed()
    assert served()["production"] == served()["staging"] == f"stored@{digest[:12]}"
    moved = registry_of(recipe).history("stored")[-1]
    assert (moved.alias, moved.digest, moved.who) == ("production", digest, "ada")
    assert files.read_json(stored.HOME / "runs" / done.run_id / "approval.json") == {
        "who": "ada", "why": "read the report", "time": moved_time(digest)
    }  # fmt: skip
    origin = versions.origin("stored@production", stored.HOME)
    assert origin.approval is not None
    assert origin.approval.who == "ada"
    assert len(inbox.got) == 2  # released to staging; waits


def moved_time(digest: str) -> str:
    given = approval.granted(stored.HOME, "stored", digest)
    assert given is not None
    return given.time


def test_a_no_ends_the_release_and_goes_no_further(recipe: Path) -> None:
    run = Deployed(release, {"recipe": str(recipe), "overrides": asking("grace")})
    assert run.go_on().name == "Suspended"
    assert summary_of(recipe)["status"] == "waiting"
    run.resume({"decision": "reject", "who": "grace", "why": "the tone is wrong"})
    final = run.go_on()
    assert final.is_failed()
    assert "grace rejected it" in final.message
    ended = summary_of(recipe)
    assert (ended["failed_stage"], ended["version"]) == ("approve", None)
    assert cli.main(["approve", ended["run_id"], "--by", "grace", "--why", "but now"]) == 2


def test_silence_until_it_expires_is_no(recipe: Path) -> None:
    soon = asking("ada", expires_h=0.5 / 3600)
    run = Deployed(release, {"recipe": str(recipe), "overrides": soon})
    run.go_on()
    for _ in range(3):
        run.resume(YES | {"who": "ada"})
        state = run.go_on()
        if state.is_final():
            break
    assert state.is_failed(), state
    assert summary_of(recipe)["version"] is None


def test_by_hand_it_ends_with_the_next_command_and_goes_on_after_it(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = release(recipe=str(recipe), overrides=asking("grace", "ada"), return_state=True)
    run_id = summary_of(recipe)["run_id"]
    assert f"trainyard approve {run_id} --by NAME" in (state.message or "")
    assert cli.main(["approve", run_id, "--by", "eve", "--why", "me too"]) == 1
    assert "the recipe names grace, ada" in capsys.readouterr().err
    assert cli.main(["approve", run_id, "--by", "grace", "--why", "good answers"]) == 0
    state = release(recipe=str(recipe), overrides=asking("grace", "ada"), return_state=True)
    assert state.is_completed(), state.message
    facts = files.read_json(stored.HOME / "runs" / summary_of(recipe)["run_id"] / "lineage.json")
    assert (facts["approval"]["who"], facts["approval"]["why"]) == ("grace", "good answers")


LEASE_S = 2.0
CANARY = {
    "deploy.lease_s": LEASE_S,
    "deploy.approval": {"by": ["ada"]},
    # without replay: what moves the weight is what the users below were answered
    "deploy.strategy": {"kind": "canary", "steps": [40, 50], "min_requests": 8, "requests": 12,
                        "margin": 0.2, "latency_tolerance": 50, "look_s": 0.4, "replay": False,
                        "approve_at": [50]},
}  # fmt: skip


class Users:
    """They ask one model without a pause, and remember who answered at which weights."""

    def __init__(self, recipe: Path) -> None:
        where = rollout.recorded_target(stored.HOME / "environments" / "dev", "stored")
        self.folder = where.folder
        self.url = f"{where.endpoint()}/v1/chat/completions"
        admin = files.read_json(self.folder / "gateway.json")["admin_url"]
        token = files.read_json(self.folder / "gateway.config.json")["token"]
        self.admin = GatewayClient(admin, token)
        self.champion = registry_of(recipe).aliases("stored")["dev"]
        self.seen: list[tuple[float, str]] = []
        self.codes: Counter[int] = Counter()

    @property
    def routes(self) -> Routes:
        return self.admin.routes()

    @contextmanager
    def asking(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._ask, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _ask(self, stop: threading.Event) -> None:
        body = {"model": "stored", "messages": [{"role": "user", "content": "hi"}]}
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not stop.wait(0.02):
                before = self.routes.weight
                answer = client.post(self.url, json=body)
                self.codes[answer.status_code] += 1
                if self.routes.weight == before:
                    self.seen.append((before, answer.headers["x-trainyard-version"]))

    def answered(self, weight: float, digest: str) -> int:
        return self.seen.count((weight, digest))


@pytest.fixture(scope="module")
def second(recipe: Path) -> Path:
    """Other weights, to be released where the first version is champion."""
    second = stored.recipe_file(Path("second.yaml"), GATES, seed=1, weights=2)
    release(recipe=str(recipe), environment="dev")
    stored.Finished(second).evaluate(second, parity=None)
    return second


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def suspended_at_50(second: Path, users: Users) -> Deployed:
    """A release whose canary has had 40 %, and that waits; nothing happens when a lease is over."""
    wanted = {"recipe": str(second), "overrides": CANARY, "environment": "dev"}
    run = Deployed(release, wanted)
    assert run.go_on().name == "Suspended"
    state = Store(users.folder).state()
    assert state is not None
    assert (state.phase, [r.step for r in state.done]) == ("waiting", ["start", "40 %"])
    asked = time.monotonic()
    users.seen.clear()
    until(lambda: time.monotonic() > asked + 1.5 * LEASE_S and len(users.seen) > 30)
    assert {digest for _, digest in users.seen} == {users.champion}, "the champion serves everybody"
    assert (users.routes.canary, users.routes.lease_until) == (None, None), "no lease to run out"
    target = rollout.recorded_target(users.folder.parents[1], "stored")
    assert target.ready("blue").ready
    assert target.ready("green").ready, "the candidate stays up"
    return run


def test_a_suspended_canary_gets_nothing_until_a_person_says_no_or_yes_and_then_its_weight(
    second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = Users(second)
    with users.asking():
        run = suspended_at_50(second, users)
        run.resume({"decision": "reject", "who": "ada", "why": "not on a Friday"})
        final = run.go_on()
        assert final.is_failed()
        assert "asked for: ada: not on a Friday" in final.message
        assert registry_of(second).aliases("stored")["dev"] == users.champion
        target = rollout.recorded_target(users.folder.parents[1], "stored")
        assert (users.routes.canary, target.ready("green").alive) == (None, False)

        run = suspended_at_50(second, users)
        run.resume(YES)
        assert run.go_on().is_completed()
        candidate = registry_of(second).aliases("stored")["dev"]
        assert candidate != users.champion
        assert users.answered(50, candidate) > 0, "half of the users, once somebody had said yes"
        assert users.answered(50, users.champion) > 0
        users.seen.clear()
        until(lambda: len(users.seen) > 10)
    assert {digest for _, digest in users.seen} == {candidate}
    assert set(users.codes) == {200}, "users noticed nothing"
    state = Store(users.folder).state()
    assert state is not None
    assert "approved: ada: read the report" in [record.reason for record in state.done]
