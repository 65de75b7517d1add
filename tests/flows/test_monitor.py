"""The monitor on a Prefect server, with real gateways in front of stub engines.

The engine is the only stand-in: traffic, records, log, registry, rollback, messages and the request
for a release are the real ones.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from flows.monitor import HOME, monitor
from flows.release import release
from tests.flows import stored
from tests.inbox import Inbox, inbox
from tests.services.rollout.test_local import stub, version
from trainyard import files, rollout
from trainyard.monitor import record
from trainyard.monitor.record import Look
from trainyard.recipe import Recipe, read_recipe
from trainyard.registry import Registry, VersionRecord
from trainyard.registry.mirror import open_registries

# mlflow maps its tables while a test runs; a warning as an error would stop that for good
pytestmark = pytest.mark.filterwarnings("default")

__all__ = ["inbox"]

OLD, NEW = "aaaaaaaa", "bbbbbbbb"
SHOP = "my order {} of a charger is late and I want a refund please"
LAB = "how do I titrate the enzyme buffer of assay {} with the reagent"
Say = dict[str, Any]


@pytest.fixture
def told(inbox: Inbox) -> list[Say]:
    return inbox.got


class Place:
    """One model in a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recipe = yaml.safe_load(Path("recipes/quickstart.yaml").read_text())
        recipe |= {"name": "m", "notify": {"to": ["env:INBOX"]}}
        recipe["deploy"] |= {
            "port": 0,
            "strategy": {"kind": "all_at_once"},
            "soak_s": 0,
            "log_fraction": 1,
            "slo": {"min_requests": 20},
        }
        recipe["monitor"] = {
            "drift": {"against": "traffic", "reference": 30, "short": 30, "long": 30,
                      "then": "release"},
            "release": {"deployment": "release/m", "cooldown_s": 3600},
        }  # fmt: skip
        Path("m.yaml").write_text(yaml.safe_dump(recipe))
        self.recipe: Recipe = read_recipe(Path("m.yaml"))
        files.write_json(HOME / "runs" / "m-1" / "recipe.json", self.recipe.model_dump(mode="json"))
        self.registry: Registry = open_registries(self.recipe.register, HOME)
        self.target = rollout.open_target(self.recipe.deploy, "m", HOME)

    def promote(self, name: str, **behaviour: Any) -> None:
        served = version(self.folder, name, **behaviour)
        assert rollout.run(self.target, served, spec=self.recipe.deploy).promoted
        record = VersionRecord(
            name="m", digest=served.digest, url=f"file:///nowhere/{name}", manifest_sha256="0" * 64,
            run_id=f"m-{name}", created="2026-11-21T00:00:00+00:00", verdict="PASS",
        )  # fmt: skip
        self.registry.register(record, self.folder)
        self.registry.promote("m", served.digest, who="a test", why="to be watched")

    def use(self, *questions: str) -> None:
        with httpx.Client(base_url=self.target.endpoint(), trust_env=False, timeout=60) as client:
            for text in questions:
                body = {"model": "m", "messages": [{"role": "user", "content": text}]}
                client.post("/v1/chat/completions", json=body)

    def look(self) -> Look:
        seen = monitor(recipe="m.yaml")
        rows = [json.loads(line) for line in self.log("looks.jsonl").splitlines()]
        assert rows[-1]["at"] == seen.at, "every look is on record"
        return seen

    def log(self, name: str) -> str:
        return (record.folder_of(HOME, "m") / name).read_text()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Iterator[Place]:
    repository = Path.cwd()
    monkeypatch.chdir(tmp_path)
    stored.make_folder(tmp_path, repository)
    (tmp_path / "bench").symlink_to(repository / "bench")  # the stub engine runs from here
    monkeypatch.setattr(rollout, "engine_command", lambda _spec: stub)
    found = Place(tmp_path)
    yield found
    found.target.down()


def found(seen: Look, check: str) -> Any:
    return next(finding for finding in seen.findings if finding.check == check)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def test_healthy_does_nothing_and_what_is_missing_is_not_healthy(
    place: Place, told: list[Say]
) -> None:
    nothing = place.look()
    assert (nothing.health, nothing.actions) == ("INCONCLUSIVE", ())
    place.promote(OLD)
    quiet = place.look()
    assert found(quiet, "served").health == "HEALTHY"
    assert found(quiet, "availability").health == "INCONCLUSIVE"
    assert quiet.health == "INCONCLUSIVE"
    place.use(*(SHOP.format(i) for i in range(90)))
    seen = place.look()
    assert (seen.health, seen.actions) == ("HEALTHY", ()), seen.as_text()
    assert told == []

    place.registry.set_alias("m", "production", _other(place), who="a thief", why="unseen")
    wrong = place.look()
    assert found(wrong, "served").health == "BREACH"
    assert "answered aaaaaaaaaaaa, recorded aaaaaaaaaaaa, registered cccccccccccc" in (
        found(wrong, "served").reason
    )
    assert [(a.kind, a.status) for a in wrong.actions] == [("alert", "done")]
    assert [message["title"] for message in told] == ["m: alarm on m@aaaaaaaaaaaa"]
    assert place.look().actions == (), "the same alarm does not ring at every look"
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"monitor-m", "monitor-m-evidence"} <= keys

    place.target.down()
    gone = place.look()
    assert found(gone, "served").health == "INCONCLUSIVE"
    assert "no gateway runs" in found(gone, "served").reason
    assert not (place.target.folder / "gateway.json").exists(), "a look starts nothing"


def _other(place: Place) -> str:
    """Register a version that serves nobody."""
    record = place.registry.versions("m")[0].model_copy(update={"digest": "c" * 64})
    place.registry.register(record, place.folder)
    return record.digest


def test_a_burning_error_budget_brings_the_former_champion_back(
    place: Place, told: list[Say]
) -> None:
    place.promote(OLD)
    place.promote(NEW, fail=0.4)
    place.use(*(SHOP.format(i) for i in range(40)))
    seen = place.look()
    assert found(seen, "availability").health == "BREACH"
    back = next(action for action in seen.actions if action.kind == "rollback")
    assert back.status == "done", back.outcome
    assert "m@aaaaaaaaaaaa serves again instead of m@bbbbbbbbbbbb" in back.outcome
    assert place.registry.aliases("m")["production"] == OLD * 8
    last = place.registry.history("m")[-1]
    assert (last.who, "burns" in last.why) == ("monitor", True)
    assert any("serves again" in message["title"] for message in told)
    after = place.look()
    assert found(after, "served").health == "HEALTHY"
    assert found(after, "availability").health == "INCONCLUSIVE", "it has answered nobody yet"
    assert not [action for action in after.actions if action.kind == "rollback"]


def test_drift_asks_for_a_release_once_in_a_cooldown(place: Place, told: list[Say]) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(release), "m")
        name = DeploymentFilter(name=DeploymentFilterName(any_=["m"]))

        def runs() -> list[Any]:
            return client.read_flow_runs(deployment_filter=name)

        place.promote(OLD)
        place.use(*(SHOP.format(i) for i in range(60)))
        assert place.look().actions == ()
        place.use(*(LAB.format(i) for i in range(30)))
        seen = place.look()
        drift = found(seen, "drift")
        assert drift.health == "BREACH"
        assert {"enzyme", "titrate", "buffer"} & set(drift.evidence["more"])
        assert {a.kind: a.status for a in seen.actions} == {"alert": "done", "release": "done"}
        (run,) = runs()
        assert run.parameters == {"recipe": "m.yaml"}
        assert str(run.id) in seen.actions[-1].outcome
        place.use(*(LAB.format(i) for i in range(30, 60)))
        again = place.look()
        (held,) = again.actions
        assert (held.kind, held.status) == ("release", "held")
        assert "asked for" in held.outcome
        assert len(runs()) == 1
        # killed between asking and noting it: the same intention is the same run
        path = record.folder_of(HOME, "m") / "actions.jsonl"
        rows = path.read_text().splitlines()
        path.write_text("\n".join(r for r in rows if '"done"' not in r or "alert" in r) + "\n")
        assert place.look().actions[-1].status == "done"
        assert len(runs()) == 1
        client.delete_deployment(deployment)
    assert len(told) == 1
