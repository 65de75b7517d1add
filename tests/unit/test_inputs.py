import os
from pathlib import Path

import pytest

from trainyard import files, inputs
from trainyard.base_model import BaseModel
from trainyard.errors import Refused
from trainyard.recipe import Recipe
from trainyard.storage.folder import FolderStore

SPEC = {
    "name": "support",
    "base_model": "base",
    "data": {"train": ["rows.dvc", "extra.jsonl"]},
    "evaluate": {"suites": [{"name": "t", "kind": "task", "data": "eval.jsonl",
                             "metrics": ["exact_match"]}]},
    "gates": {"exact_match": ">= 0.9"},
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "extra.jsonl", "eval.jsonl"):
        files.write_text(tmp_path / name, f'{{"from": "{name}"}}\n')
    files.write_text(tmp_path / "rows.dvc", "outs:\n- {path: rows.jsonl, md5: 0123abcd}\n")
    files.write_text(tmp_path / "blobs" / "1", "{}")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").symlink_to("../blobs/1")  # as in a hub's cache
    return tmp_path


def found(keep: str, scratch: Path) -> list[inputs.Input]:
    recipe = Recipe.model_validate(SPEC | {"register": {"keep_inputs": keep}})
    base = BaseModel(ref="base", path=Path("base"), revision="r1", digest="b" * 64, config={})
    return inputs.find(recipe, base, scratch)


def test_every_file_is_named_with_its_role_digest_and_dvc_pointer(here: Path) -> None:
    read = {found.file.name: found.file for found in found("data", here / "scratch")}
    assert {name: file.role for name, file in read.items()} == {
        "rows.jsonl": "data",
        "extra.jsonl": "data",
        "eval.jsonl": "eval set",
        "config.json": "base model",
    }
    assert read["rows.jsonl"].dvc_md5 == "0123abcd"
    assert read["extra.jsonl"].sha256 == files.digest_file(here / "extra.jsonl")


@pytest.mark.parametrize(("keep", "kept"), [("none", 0), ("data", 3), ("all", 4)])
def test_the_recipe_says_what_the_archive_keeps_and_it_comes_back_the_same(
    here: Path, keep: str, kept: int
) -> None:
    home, store = here / "home", FolderStore(here / "archive")
    read = found(keep, here / "scratch")
    inputs.archive(store, home, inputs.hold(home, read))
    assert len(list(store.entries(inputs.PREFIX))) == kept
    assert not any((home / "held").glob("*"))
    for file, path in read:
        if file.archived:
            inputs.bring(store, file, here / "back" / file.name)
            assert (here / "back" / file.name).read_bytes() == path.read_bytes()


def test_a_file_that_changes_before_it_is_archived_is_refused(here: Path) -> None:
    read = found("data", here / "scratch")
    held = inputs.hold(here / "home", read)
    with (here / "extra.jsonl").open("a") as file:  # shares its bytes with what is held
        file.write("one more row")
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(Refused, match="changed while it was archived"):
        inputs.archive(FolderStore(here / "archive"), here / "home", held)
