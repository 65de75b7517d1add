from trainyard.training.checkpoints import (
    MARKER,
    discard_unusable,
    mark_complete,
    newest_complete,
)

IDENTITY = {"data": "d", "recipe": "r", "environment": "e"}


def make(folder, step, *, whole=True, identity=IDENTITY):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"state %d" % step)
    if whole:
        mark_complete(checkpoint, step, identity)
    return checkpoint


def test_the_newest_is_by_step_not_by_name(tmp_path):
    make(tmp_path, 9)
    assert newest_complete(tmp_path) != make(tmp_path, 100, whole=False)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-9"
    assert newest_complete(tmp_path / "none") is None


def test_an_unfinished_a_damaged_and_a_lacking_one_are_discarded_with_the_reason(tmp_path):
    make(tmp_path, 1)
    make(tmp_path, 2, whole=False)
    (make(tmp_path, 3) / "optimizer.pt").write_bytes(b"state 4")
    (make(tmp_path, 4) / "optimizer.pt").unlink()
    assert discard_unusable(tmp_path, IDENTITY) == [
        "checkpoint-2 is not used: it was not finished",
        "checkpoint-3 is not used: optimizer.pt is damaged",
        "checkpoint-4 is not used: optimizer.pt is missing",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_of_another_job_is_discarded_and_says_what_differs(tmp_path):
    make(tmp_path, 5, identity=IDENTITY | {"data": "other", "environment": "newer"})
    assert discard_unusable(tmp_path, IDENTITY) == [
        "checkpoint-5 is not used: data and environment changed since"
    ]


def test_the_marker_is_not_counted_among_the_files(tmp_path):
    checkpoint = make(tmp_path, 6)
    assert MARKER not in (checkpoint / MARKER).read_text()
