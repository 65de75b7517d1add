"""The CI files that teams copy: their plan step is run here as it is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE = Path("recipes/quickstart.yaml")


def step(name: str) -> str:
    found: dict[str, Any] = yaml.safe_load(Path(f"docs/ci/{name}.yml").read_text())
    if name == "gitlab":
        return str(found["trainyard"]["script"][-1])
    return str(found["jobs"]["trainyard"]["steps"][-1]["run"])


@pytest.mark.parametrize(
    ("name", "old", "new", "code", "said"),
    [
        ("github", "rank: 16", "rank: 8", 0, "changed train.rank: 16 → 8"),
        ("gitlab", ">= 0.9", ">= 0.99999", 1, "PROBLEM: gate exact_match"),
    ],
)
def test_the_plan_step_compares_passes_and_fails(
    name: str, old: str, new: str, code: int, said: str, tmp_path: Path
) -> None:
    shutil.copytree("recipes/quickstart", tmp_path / "recipes/quickstart")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    (tmp_path / RECIPE).write_text(RECIPE.read_text())
    git = ["git", "-C", str(tmp_path), "-c", "user.name=Ada", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / RECIPE).write_text(RECIPE.read_text().replace(old, new))
    env = os.environ | {
        "PYTHONPATH": str(Path.cwd()),
        "AGAINST": "HEAD",
        "CI_COMMIT_BEFORE_SHA": "HEAD",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
    }
    command = ["bash", "-c", step(name)]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_no_example_asks_for_a_secret(name: str) -> None:
    text = Path(f"docs/ci/{name}.yml").read_text()
    assert "secrets." not in text
    assert "pull_request_target" not in text
