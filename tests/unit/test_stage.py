from pathlib import Path

from trainyard import stage


def finish(home: Path, inputs: dict[str, object]) -> Path:
    with stage.opened(home, "data", inputs) as opened:
        (opened.folder / "rows").mkdir(exist_ok=True)
        (opened.folder / "rows" / "train.jsonl").write_text("{}\n")
        opened.finish({"rows": 1}, ["rows"])
        return opened.folder


def test_a_finished_stage_is_found_by_its_inputs(tmp_path: Path) -> None:
    finish(tmp_path, {"spec": 1})
    with stage.opened(tmp_path, "data", {"spec": 1}) as again:
        assert again.finished() == {"rows": 1}
    with stage.opened(tmp_path, "data", {"spec": 2}) as other:
        assert other.finished() is None


def test_a_stage_that_was_cut_short_is_not_finished(tmp_path: Path) -> None:
    with stage.opened(tmp_path, "data", {"spec": 1}) as cut:
        (cut.folder / "train.jsonl").write_text("{")
    with stage.opened(tmp_path, "data", {"spec": 1}) as again:
        assert again.finished() is None


def test_a_damaged_file_makes_the_stage_run_again(tmp_path: Path) -> None:
    folder = finish(tmp_path, {"spec": 1})
    (folder / "rows" / "train.jsonl").write_text("tampered")
    with stage.opened(tmp_path, "data", {"spec": 1}) as again:
        assert again.finished() is None


def test_outputs_appear_whole_in_the_run(tmp_path: Path) -> None:
    finish(tmp_path, {"spec": 1})
    with stage.opened(tmp_path, "data", {"spec": 1}) as opened:
        opened.publish("rows", tmp_path / "run" / "data")
    assert (tmp_path / "run" / "data" / "train.jsonl").read_text() == "{}\n"
