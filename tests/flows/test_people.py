"""A release that waits for people: suspended on a server, ended with exit 3 by hand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL

from flows.release import release
from tests.flows import stored
from trainyard import rollout

# mlflow maps its tables while a release runs; a warning as an error would stop that for good
pytestmark = pytest.mark.filterwarnings("default")

GATES: list[Any] = [
    "accuracy >= 0.9",
    {"id": "parity", "metric": "parity", "severity": "warn"},
    {"id": "spot", "metric": "human_issue_rate", "op": "<=", "value": 0.05, "suite": "task",
     "sample": 59},
]  # fmt: skip
PEOPLE = {"id": "people", "metric": "human_win_rate", "op": ">", "value": 0.5, "suite": "duel",
          "opponent": "base", "sample": 30}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[Path]:
    repository, folder = Path.cwd(), tmp_path_factory.mktemp("people")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stored.make_folder(folder, repository)
        yield folder
        rollout.down(stored.HOME)


def prepare(seed: int, gates: list[Any] = GATES, weights: int = 1) -> Path:
    recipe = stored.recipe_file(Path(f"recipe{seed}.yaml"), gates, seed=seed, weights=weights)
    stored.Finished(recipe).evaluate(recipe, parity=None)
    return recipe


def answers(page: Path, choose: Callable[[dict[str, Any]], str]) -> str:
    """What the page saves when somebody answers it all."""
    rows = [json.loads(line) for line in (page.parent / "items.jsonl").read_text().splitlines()]
    return "".join(
        json.dumps({key: row[key] for key in ("form", "id", "shown")} | {"choice": choose(row)})
        + "\n"
        for row in rows
    )


def summaries(recipe: Path) -> list[dict[str, Any]]:
    """Of the runs of one recipe, oldest first."""
    found = [json.loads(p.read_text()) for p in Path(".trainyard/runs").glob("*/summary.json")]
    mine = [one for one in found if one["recipe_path"] == str(recipe)]
    return sorted(mine, key=lambda one: one["run_id"])


def form(gate: str) -> Path:
    pages = Path(".trainyard/human/stored").glob(f"{gate}-*/form.html")
    return max(pages, key=lambda page: page.stat().st_mtime)


def test_by_hand_it_says_what_to_do_ends_with_3_and_goes_on_when_it_is_done(folder: Path) -> None:
    recipe = prepare(1)
    env = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    command = [sys.executable, "-m", "flows.release", str(recipe)]
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 3, done.stdout + done.stderr
    page = form("spot")
    assert f"open {page} in a browser" in done.stderr
    assert str(page.parent / "answers.jsonl") in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (waiting,) = summaries(recipe)
    assert (waiting["status"], waiting["verdict"]) == ("waiting", "PENDING_HUMAN")
    assert waiting["stages"][-1]["status"] == "waiting"
    assert waiting["version"] is None

    (page.parent / "answers.jsonl").write_text(answers(page, lambda _: "good")[:2000])
    state = release(recipe=str(recipe), return_state=True)
    assert "answers.jsonl" in (state.message or "")

    (page.parent / "answers.jsonl").write_text(answers(page, lambda _: "good"))
    state = release(recipe=str(recipe), return_state=True)
    assert state.is_completed(), state.message
    last = max(summaries(recipe), key=lambda one: len(one["stages"]))
    statuses = {stage["name"]: stage["status"] for stage in last["stages"]}
    assert (statuses["train"], statuses["evaluate"]) == ("skipped", "skipped")
    assert last["version"]


def test_on_a_server_it_is_suspended_until_the_whole_form_is_entered(folder: Path) -> None:
    recipe = prepare(2, [*GATES, PEOPLE], weights=2)
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(release)
        deployment = client.create_deployment(flow_id, "waits")
        run = client.create_flow_run_from_deployment(deployment, parameters={"recipe": str(recipe)})

        def go_on() -> None:
            """What a worker does with a run that is due."""
            due = client.read_flow_run(run.id)
            with suppress(Pause):
                run_flow(release, flow_run=due, parameters={"recipe": str(recipe)},
                         return_type="state")  # fmt: skip

        def resume(text: str | None) -> None:
            given = None if text is None else {"answers": text}
            client.resume_flow_run(run.id, run_input=given)

        def state_of(run_id: UUID) -> Any:
            return client.read_flow_run(run_id).state

        go_on()
        assert state_of(run.id).name == "Suspended"
        spot = form("spot")
        assert Path(summaries(recipe)[-1]["report"]).exists()

        result = client.resume_flow_run(run.id)  # an empty resume approves nothing
        assert result.status.value == "REJECT"
        assert state_of(run.id).name == "Suspended"

        resume(answers(spot, lambda _: "good")[:500])
        go_on()
        assert state_of(run.id).name == "Suspended"  # asked again

        resume(answers(spot, lambda _: "good"))
        go_on()
        assert state_of(run.id).name == "Suspended"  # the other form

        worse = lambda row: "two" if row["one"].startswith("candidate") else "one"  # noqa: E731
        resume(answers(form("people"), worse).replace("\n", ""))
        go_on()
        final = state_of(run.id)
    assert final.type.value == "FAILED"
    assert "people FAIL: human_win_rate on suite duel 0" in final.message
