import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest

from trainyard import drawing, lineage
from trainyard.errors import InputError, NotFound


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "recipe.yaml").write_text("name: support\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "remote", "add", "origin", "https://erik:s3cr3tt0ken@example.com/team/models.git")
    return folder


def sample() -> lineage.Lineage:
    return lineage.Lineage(
        name="support",
        digest="a" * 64,
        created="2026-11-20T10:00:00+00:00",
        run_id="support-1",
        git=lineage.Git(commit="c" * 40, branch="main", remote=None, dirty=False),
        recipe=lineage.recipe_facts("recipes/support.yaml", "name: support\n", {"name": "support"}),
        base_model=lineage.BaseModelFacts(ref="base", revision="r1", digest="b" * 64),
        data=lineage.DataFacts(digest="d" * 64, lines=10, train=8, val=1, quarantine=1),
        training={"backend": "trl", "seed": 7},
        environment=lineage.environment(),
        scores={"tickets/exact_match": 0.94},
        verdict="PASS",
        gates=({"id": "tickets", "verdict": "PASS"},),
    )


def test_a_clean_tree_is_its_commit_and_branch(repository: Path) -> None:
    found = lineage.git_state(repository)
    assert found is not None
    assert (len(found.commit), found.branch, found.dirty, found.diff) == (40, "main", False, "")


def test_credentials_in_the_remote_are_masked(repository: Path) -> None:
    found = lineage.git_state(repository)
    assert found is not None
    assert found.remote == "https://***@example.com/team/models.git"


def test_changes_and_untracked_files_make_a_tree_dirty(repository: Path) -> None:
    (repository / "recipe.yaml").write_text("name: support\nwandb_api_key: abcdef1234567890\n")
    (repository / "new.py").write_text("print()\n")
    found = lineage.git_state(repository)
    assert found is not None
    assert found.dirty
    assert "wandb_api_key: ***" in found.diff
    assert "abcdef1234567890" not in found.model_dump_json()
    assert list(found.untracked) == ["new.py"]


def test_outside_a_repository_there_is_no_state(tmp_path: Path) -> None:
    assert lineage.git_state(tmp_path) is None


def test_a_lineage_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "lineage.json"
    path.write_text(sample().model_dump_json())
    assert lineage.read(path) == sample()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema_version": 99}', "schema 99 and this trainyard reads up to 2"),
        ("not json", "is no lineage"),
        ("[]", "is no lineage"),
        ("{}", "is no lineage"),
    ],
)
def test_what_is_no_lineage_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(InputError, match=said):
        lineage.read(tmp_path / "lineage.json")
    with pytest.raises(NotFound):
        lineage.read(tmp_path / "nothing.json")


def test_two_equal_environments_have_no_difference() -> None:
    assert lineage.differences(lineage.environment(), lineage.environment()) == []


def test_every_package_that_differs_is_named() -> None:
    here = lineage.environment()
    then = here.model_copy(
        update={"packages": here.packages | {"pydantic": "1.0"}, "threads": 99, "python": "3.11.0"}
    )
    said = lineage.differences(then, here)
    assert "threads: 99 then, " in said[1]
    assert any(line.startswith("pydantic: 1.0 then, 2.") for line in said)


def test_the_drawing_leads_back_to_commit_and_data() -> None:
    shown = {"data": "d" * 64, "commit": "c" * 40, "gate": "tickets"}
    for drawn in (drawing.as_text(sample()), drawing.as_html(sample())):
        assert "support@aaaaaaaaaaaa" in drawn
        assert all(part in drawn for part in shown.values())


def test_the_page_is_self_contained_and_escapes_what_it_shows() -> None:
    page = drawing.as_html(sample().model_copy(update={"who": "<script>alert(1)</script>"}))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)=", page)


def test_a_lineage_of_schema_1_can_still_be_read(tmp_path: Path) -> None:
    old = json.loads(sample().model_dump_json()) | {"schema_version": 1, "tracker_run": "abc"}
    for key in ("inputs", "intervals", "seeds", "evidence", "parity", "cost", "approval"):
        del old[key]
    (tmp_path / "lineage.json").write_text(json.dumps(old))
    assert lineage.read(tmp_path / "lineage.json").inputs == ()


def test_the_json_schema_in_the_repository_is_current() -> None:
    written = json.loads(lineage.SCHEMA_FILE.read_text())
    assert written == lineage.Lineage.model_json_schema()
    jsonschema.validate(json.loads(sample().model_dump_json()), written)
