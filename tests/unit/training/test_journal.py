import json

from trainyard.training.job import HEARTBEAT, METRICS
from trainyard.training.journal import Journal, read_metrics


def test_steps_after_the_checkpoint_are_dropped_and_half_a_line_too(tmp_path):
    journal = Journal(tmp_path)
    for step in range(1, 6):
        journal.step({"step": step, "tokens": step * 10})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "tok')
    assert journal.resume_at(3)[-1] == {"step": 3, "tokens": 30}
    journal.step({"step": 4, "tokens": 41})
    assert [line["tokens"] for line in read_metrics(tmp_path / METRICS)] == [10, 20, 30, 41]


def test_a_fresh_start_keeps_nothing(tmp_path):
    journal = Journal(tmp_path)
    journal.step({"step": 1})
    assert journal.resume_at(0) == []
    assert read_metrics(tmp_path / METRICS) == []


def test_heartbeats_are_few_unless_they_matter(tmp_path):
    journal = Journal(tmp_path)
    journal.beat("loading", force=True)
    journal.beat("training", 1)
    assert json.loads((tmp_path / HEARTBEAT).read_text())["phase"] == "loading"
    journal.beat("saving", 1, force=True)
    assert json.loads((tmp_path / HEARTBEAT).read_text())["phase"] == "saving"
