from pathlib import Path

import pytest

from trainyard import files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, {"x": float("nan")})
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_digest_of_json_ignores_the_order_of_keys() -> None:
    assert files.digest_json({"a": 1, "b": 2}) == files.digest_json({"b": 2, "a": 1})


def test_the_digest_of_a_tree_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = files.digest_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = files.digest_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, files.digest_tree(tmp_path)}) == 3


def test_a_linked_folder_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "new").write_text("new")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").write_text("old")
    files.link(tmp_path / "source", tmp_path / "target")
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["new"]
    assert (tmp_path / "target" / "new").read_text() == "new"


def test_a_log_stays_within_its_bound_and_keeps_its_beginning_and_what_is_new(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    for i in range(3000):
        files.append_row(path, {"i": i}, most_bytes=4000)
        assert path.stat().st_size <= 4000
    kept = [row["i"] for row in files.rows_of(path)]
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-100:] == list(range(2900, 3000))
