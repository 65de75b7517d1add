"""The release flow, blocked by each kind of gate in turn, with nothing registered or served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from flows.release import release
from tests.flows import stored
from tests.flows.stored import Change, judgement_rows
from trainyard import rollout
from trainyard.recipe import read_recipe
from trainyard.registry import open_registry

# mlflow maps its tables while a release runs; a warning as an error would stop that for good
pytestmark = pytest.mark.filterwarnings("default")

GATES: list[Any] = [
    "accuracy >= 0.9",
    {"id": "slice", "metric": "accuracy", "slice": "kind=y", "op": ">=", "value": 0.85},
    {"rougeL": ">= 0.6"},
    {"macro_f1": ">= 0.9"},
    {"p99_latency_ms": "<= 500"},
    {"harmful_rate": "<= 0.01"},
    {"over_refusal": "<= 0.1"},
    {"capability_drop": "<= 0.05"},
    {"perplexity_ratio": "<= 1.1"},
    {"id": "drop", "metric": "accuracy", "compare": "base", "max_drop": 0.05},
    {"id": "champion", "metric": "accuracy", "compare": "champion", "max_drop": 0.03},
    {"id": "relative", "metric": "token_f1", "compare": "base", "max_drop": 0.1,
     "scale": "relative"},
    {"id": "increase", "metric": "refused", "compare": "base", "max_increase": 0.05},
    {"id": "per_task", "metric": "contains", "compare": "base", "max_drop": 0.1,
     "per_task_max_drop": 0.1},
    {"win_rate": "> 0.75"},
    {"rubric_score": ">= 0.6"},
]  # fmt: skip


class Case(NamedTuple):
    gate: str
    verdict: str
    says: str
    change: Change | None = None
    judgements: list[Any] | None = None
    parity: Literal["ok", "broken", "not measured"] | None = "ok"


def rate(share: float) -> Any:
    return lambda i: float((i * 37 % 100) / 100 < share)


ARMS = ("candidate", "base", "champion")
CASES = [
    Case("accuracy", "FAIL", "accuracy on suite task 0.75",
         {("task", "accuracy", arm): lambda i: float(i % 4 != 1) for arm in ARMS}),
    Case("slice", "FAIL", "accuracy on suite task 0.75",
         {("task", "accuracy", arm): lambda i: float(i % 16 > 0) for arm in ARMS}),
    Case("rougeL", "INVALID", "not finite",
         {("task", "rougeL", "candidate"): lambda i: float("nan") if i == 3 else 0.7}),
    Case("macro_f1", "INCONCLUSIVE", "macro_f1",
         {("task", "macro_f1", "candidate"): rate(0.91)}),
    Case("p99_latency_ms", "FAIL", "p99_latency_ms",
         {("task", "latency_ms", "candidate"): lambda i: 900.0 if i % 20 == 0 else 80.0}),
    Case("harmful_rate", "INCONCLUSIVE", "harmful_rate on suite harm 0.005",
         {("harm", "harmful", "candidate"): lambda i: float(i in (5, 9))}),
    Case("over_refusal", "FAIL", "over_refusal",
         {("safe", "refused", arm): rate(0.2) for arm in ARMS}),
    Case("capability_drop", "FAIL", "drop of capability against champion",
         {(suite, "capability", "champion"): lambda i: 1.0 for suite in ("task", "other")}
         | {(suite, "capability", arm): rate(0.8) for suite in ("task", "other")
            for arm in ("candidate", "base")}),
    Case("perplexity_ratio", "FAIL", "perplexity ratio against base",
         {("corpus", "perplexity", "candidate"): lambda i: 6.0 + i % 7 / 10}),
    Case("drop", "INCONCLUSIVE", "drop of accuracy against base",
         {("task", "accuracy", "base"): lambda i: float(i % 100 > 0)}),
    Case("champion", "FAIL", "drop of accuracy against champion",
         {("task", "accuracy", "champion"): lambda i: 1.0,
          ("task", "accuracy", "candidate"): rate(0.93), ("task", "accuracy", "base"): rate(0.93)}),
    Case("relative", "FAIL", "relative drop of token_f1",
         {("task", "token_f1", "base"): lambda i: 0.9}),
    Case("increase", "INCONCLUSIVE", "increase of refused against base",
         {("safe", "refused", "base"): lambda i: 0.0,
          ("safe", "refused", "candidate"): lambda i: float(i % 25 == 1)}),
    Case("per_task", "FAIL", "suite other",
         {("other", "contains", "base"): lambda i: 1.0,
          ("other", "contains", "candidate"): rate(0.85),
          ("task", "contains", "candidate"): lambda i: 1.0,
          ("task", "contains", "base"): lambda i: 1.0}),
    Case("win_rate", "FAIL", "win rate 0.5", judgements=judgement_rows(lambda i: i % 2 > 0)),
    Case("win_rate", "INCONCLUSIVE", "judge_uncalibrated",
         judgements=[row for row in judgement_rows(calibrated=False) if row.order != "single"]
         + [row for row in judgement_rows() if row.order == "single"]),
    Case("win_rate", "INCONCLUSIVE", "of the judge's calls are invalid",
         judgements=judgement_rows(invalid=20)),
    Case("win_rate", "INVALID", "judgements are missing",
         judgements=[row for row in judgement_rows() if (row.id, row.order) != ("i7", "BA")]),
    Case("rubric_score", "FAIL", "mean grade", judgements=judgement_rows(grade=0.5)),
    Case("parity", "FAIL", "step server broken", parity="broken"),
    Case("parity", "INVALID", "step server not measured", parity="not measured"),
    Case("harmful_rate", "INVALID", "no scores of metric 'harmful'",
         {("harm", "harmful", arm): None for arm in ARMS}),
]  # fmt: skip


class World:
    """A folder in which a champion serves, and releases that are judged against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seed = 0

    def run(self, case: Case, *, weights: int) -> State[Any]:
        """Release stored scores that are good but for the case's; return the run's final state."""
        self.seed += 1
        # without a stored answer to compare with, the rollout asks the server anything
        warned = [] if case.parity else [{"id": "parity", "metric": "parity", "severity": "warn"}]
        recipe = stored.recipe_file(
            Path("recipe.yaml"), [*GATES, *warned], seed=self.seed, weights=weights
        )
        finished = stored.Finished(recipe)
        finished.evaluate(recipe, case.change, case.judgements, parity=case.parity)
        return release(recipe=str(recipe), return_state=True)

    def summary(self) -> dict[str, Any]:
        runs = sorted(Path(".trainyard/runs").glob("*/summary.json"),
                      key=lambda path: path.stat().st_mtime)  # fmt: skip
        found: dict[str, Any] = json.loads(runs[-1].read_text())
        return found

    def gates(self) -> dict[str, Any]:
        folder = Path(".trainyard/runs") / self.summary()["run_id"]
        decision = json.loads((folder / "gate.json").read_text())
        return {gate["id"]: gate for gate in decision["gates"]}

    def shipped(self) -> tuple[str, str, list[Path]]:
        """The champion, what the alias names, and every version in the archive."""
        spec = read_recipe(Path("recipe.yaml")).register.registry
        champion = open_registry(spec, stored.HOME).resolve("stored", "production")
        (served,) = rollout.status(stored.HOME)
        return (
            champion.digest,
            str(served.champion),
            sorted(Path(".trainyard/archive").rglob("manifest.json")),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[World]:
    """A champion came to serve by a release that passed every gate."""
    repository, folder = Path.cwd(), tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stored.make_folder(folder, repository)
        made = World(folder)
        state = made.run(Case("", "PASS", "", parity=None), weights=1)
        assert state.is_completed(), state.message
        yield made
        rollout.down(stored.HOME)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.gate}-{case.verdict}")
def test_each_gate_alone_stops_a_release(world: World, case: Case) -> None:
    before = world.shipped()
    state = world.run(case, weights=2)
    assert state.type is StateType.FAILED
    assert f"{case.gate} {case.verdict}: " in (state.message or "")
    assert case.says in (state.message or "")
    gates = world.gates()
    stopped = {name: gate["verdict"] for name, gate in gates.items() if gate["verdict"] != "PASS"}
    assert stopped == {case.gate: case.verdict}
    assert gates[case.gate]["next"]
    summary = world.summary()
    assert (summary["verdict"], summary["failed_stage"]) == (case.verdict, "gate")
    assert (summary["version"], summary["endpoint"]) == (None, None)
    assert world.shipped() == before
    page = Path(summary["report"]).read_text()
    assert case.gate in page
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(summary["flow_run_id"])
    assert run.state is not None
    assert run.state.type is StateType.FAILED


def test_an_undecided_gate_draws_more_items_and_the_record_says_so(world: World) -> None:
    limits = {"task": {"limit": 200, "more": [400]}}
    gates = ["accuracy >= 0.9", {"win_rate": "> 0.75"}]
    recipe = stored.recipe_file(Path("more.yaml"), gates, seed=1000, weights=2, limits=limits)
    finished = stored.Finished(recipe)
    change: Change = {
        ("task", "accuracy", arm): lambda i: float(i % 14 > 0 if i < 200 else i % 5 > 0)
        for arm in ARMS
    }
    finished.evaluate(recipe, change)
    finished.evaluate(recipe, change, looks=({"task": 400},))
    before = world.shipped()
    state = release(recipe=str(recipe), return_state=True)
    assert "accuracy FAIL" in (state.message or "")
    summary = world.summary()
    assert [stage["name"] for stage in summary["stages"]][3:] == ["evaluate", "gate"] * 2
    decision = json.loads((Path(summary["report"]).parent / "gate.json").read_text())
    looks = [(look["verdict"], look["items"]["task"]) for look in decision["looks"]]
    assert looks == [("INCONCLUSIVE", 200), ("FAIL", 400)]
    assert world.gates()["accuracy"]["alpha"] == 0.025
    assert world.gates()["win_rate"]["alpha"] == 0.05
    assert world.shipped() == before
