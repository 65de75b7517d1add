"""A release and a promotion that wait for a named person, on a real server and by hand."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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
        (folder / "deployments").unlink()
        for name, text in {"laptop": "{serves: production}", "staging": "{serves: staging}",
                           "production": "{serves: production}"}.items():  # fmt: skip
            files.write_text(folder / f"deployments/environments/{name}.yaml", text)
        yield folder
        rollout.down(stored.HOME)


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
