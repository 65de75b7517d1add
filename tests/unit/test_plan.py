"""The plan is complete before anything is spent: its keys, its words, and what it compares with."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.rollout.test_manifests import make
from trainyard import changes, cli
from trainyard.environment import Environment
from trainyard.plan import make as make_plan
from trainyard.recipe import parse_override, read_recipe
from trainyard.release.job import Job
from trainyard.training import estimates

RECIPE = Path("recipes/quickstart.yaml")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["plan", *arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def test_the_keys_that_tools_rely_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = plan(capsys, str(RECIPE), "--home", str(tmp_path))
    assert code == 0
    assert {"stages", "vram", "disk", "time_s", "gpu_hours", "cost", "gates", "problems"} <= set(
        found
    )
    assert [stage["name"] for stage in found["stages"]][:3] == ["plan", "data", "train"]
    assert all(set(stage) == {"name", "action", "reason"} for stage in found["stages"])
    assert {stage["action"] for stage in found["stages"]} <= {"run", "skip"}
    assert set(found["vram"]) == {"needed_gib", "available_gib", "fits", "micro_batch"}
    for gate in found["gates"]:
        assert {"id", "n", "min_detectable", "can_pass"} <= set(gate)
    assert not list(tmp_path.glob("mlflow.db"))  # it leaves nothing behind


@pytest.mark.parametrize(
    "override",
    [
        "gates.exact_match='>= 0.99999'",  # more than 400 items can prove
        "resources.max_hours=0.001",
        "resources.gpus=3",  # batch_size 16 is not shared by three
    ],
)
def test_what_is_impossible_is_a_problem_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    code, found = plan(capsys, str(RECIPE), "--home", str(tmp_path), "--set", override)
    assert code == 1
    assert found["problems"]


def test_several_machines_are_planned_and_refused_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        "resources.gpus=2",
        "resources.gpu=L4",
        "resources.price_per_gpu_hour=2",
        "train.device_batch_size=2",
    ]
    asked = [str(RECIPE), "--home", str(tmp_path), *(p for key in keys for p in ("--set", key))]
    found = plan(capsys, *asked, "--set", "resources.nodes=2")[1]
    assert not found["problems"]
    assert found["gpu_hours"] == pytest.approx(4 * found["time_s"] / 3600, abs=1e-3)
    assert any("only as a Job of a Kubernetes pool" in note for note in found["notes"])
    uneven = plan(capsys, *asked, "--set", "resources.nodes=3")[1]
    assert any("times 6 processes" in problem for problem in uneven["problems"])
    code, there = plan(capsys, *asked, "--set", "resources.nodes=2", "--environment", "laptop")
    assert code == 1
    assert any("training here (here) has one machine" in said for said in there["problems"])
    code = cli.main(["plan", str(RECIPE), "--home", str(tmp_path), "--set", "resources.nodes=2"])
    assert code == 2
    assert "nodes (2) needs gpus, those of one node" in capsys.readouterr().err


ELSEWHERE = {
    "deploy.strategy={kind: ab}": "strategy ab needs one gateway",
    "deploy.strategy={kind: canary, judged: {suite: duel}}": "strategy.judged reads the pairs",
    "monitor.drift={}": "monitor.drift reads the gateway's log",
}


@pytest.mark.parametrize(("key", "says"), ELSEWHERE.items())
def test_what_an_environment_cannot_do_is_a_problem_before_training(
    tmp_path: Path, key: str, says: str
) -> None:
    cluster = {"engine": "vllm", "target": make()[1].model_dump(mode="json")}
    there = Environment(serves="staging", deploy=cluster)
    duel = {
        "name": "duel",
        "kind": "pairwise",
        "opponent": "base",
        "data": "recipes/quickstart/eval.jsonl",
        "jurors": [{"base_url": "http://127.0.0.1:9", "model": "judge-2026-01-01"}],
    }
    suites = yaml.safe_load(RECIPE.read_text())["evaluate"]["suites"]
    overrides = {"evaluate.suites": [*suites, duel], "deploy.log_fraction": 1}
    recipe = read_recipe(RECIPE, overrides | dict([parse_override(key)]))
    job = Job(recipe=recipe, recipe_path=str(RECIPE), run_id="r", home=tmp_path)
    assert not make_plan(job).problems
    (problem,) = make_plan(job, there).problems
    assert says in problem


def test_memory_is_corrected_by_what_such_trainings_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(RECIPE), "--home", str(tmp_path), "--set", "train.backend=trl"]
    before = plan(capsys, *asked)[1]
    estimates.keep(tmp_path, "cpu/trl/qlora/sft/none", 1.0, 1.25)
    after = plan(capsys, *asked)[1]
    assert after["vram"]["needed_gib"] == pytest.approx(
        before["vram"]["needed_gib"] * 1.25, abs=0.02
    )
    assert any("times 1.25: what 1 trainings" in note for note in after["notes"])
    assert set(after["disk"]) == {"needed_gib", "export_gib", "free_gib"}


def test_a_model_that_could_not_be_served_is_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = ["train.method=full", "train.backend=trl"]
    served = [part for key in full for part in ("--set", key)]
    assert plan(capsys, str(RECIPE), "--home", str(tmp_path), *served)[0] == 0
    recipe = Path("recipes/tickets-8b-vllm.yaml")
    elsewhere = [*served, "--set", "train.activation_checkpointing=block"]
    assert cli.main(["plan", str(recipe), "--home", str(tmp_path), *elsewhere]) == 2
    assert "train.method: full makes a whole model, and engine vllm" in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose newest recipe has another rank than its first."""
    shutil.copytree("recipes/quickstart", tmp_path / "recipes/quickstart")
    shutil.copy(RECIPE, tmp_path / RECIPE)
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    text = RECIPE.read_text().replace("rank: 16", "rank: 8").replace('">= 0.9"', '">= 0.8"')
    RECIPE.write_text(text)
    return tmp_path


@pytest.mark.usefixtures("repository")
def test_a_recipe_is_compared_with_a_commit_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = plan(capsys, str(RECIPE), "--against", "main")
    assert code == 0
    assert found["changes"][0] == "train.rank: 16 → 8 (0.5 times)"
    assert any("gates.exact_match" in change for change in found["changes"])
    assert cli.main(["plan", str(RECIPE), "--against", "main"]) == 0
    assert "changed train.rank: 16 → 8 (0.5 times)" in capsys.readouterr().out


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("against", ["nowhere", "--output=x", "quickstart@production"])
def test_what_there_is_not_to_compare_with_is_one_sentence(
    capsys: pytest.CaptureFixture[str], against: str
) -> None:
    assert cli.main(["plan", str(RECIPE), f"--against={against}"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"train.epochs": 2}, ["train.epochs: 1 → 2 (2 times)"]),
        ({"train.dora": True, "train.backend": "trl"},
         ["train.backend: auto → trl", "train.dora: False → True"]),
        ({"data.train": ["a.jsonl", "b.jsonl"]},
         ["data.train: recipes/quickstart/train.jsonl → a.jsonl, b.jsonl"]),
        ({"data.group_by": "customer"}, ["data.group_by: customer is new"]),
        ({}, []),
    ],
)  # fmt: skip
def test_every_changed_key_is_a_line(override: dict[str, Any], words: list[str]) -> None:
    found = changes.between(read_recipe(RECIPE), read_recipe(RECIPE, override))
    assert [change.words for change in found] == words
