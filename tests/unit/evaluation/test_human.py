import json

import pytest

from trainyard.errors import InputError
from trainyard.evaluation.human import export_pairs, import_answers
from trainyard.evaluation.judge.rate import item_scores
from trainyard.evaluation.judge.suite import Duel
from trainyard.evaluation.samples import Item

DUELS = [
    Duel(Item(f"i{i}", ({"role": "user", "content": f"ask {i}"},)), f"candidate {i}", f"other {i}")
    for i in range(40)
]


@pytest.fixture
def folder(tmp_path):
    export_pairs(DUELS, tmp_path, count=20, seed=1, suite="s", opponent="base")
    return tmp_path


def shown(folder):
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def choose(folder, rows):
    path = folder / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return import_answers(path, folder / "key.json", "ann")


def test_who_always_prefers_the_candidate_gives_it_every_win(folder):
    rows = [
        {"id": pair["id"], "choice": "one" if pair["one"].startswith("candidate") else "two"}
        for pair in shown(folder)
    ]
    found = choose(folder, rows)
    assert set(item_scores(found).values()) == {1.0}
    digests = {duel.item.id: duel.digest for duel in DUELS}
    assert all(row.answers == digests[row.id] and row.human for row in found)


def test_people_cannot_tell_whose_answer_stands_where(folder):
    first = [pair["one"].split()[0] for pair in shown(folder)]
    assert 4 <= first.count("candidate") <= 16
    assert "base" not in (folder / "pairs.jsonl").read_text()


def test_the_form_holds_the_pairs_and_no_markup_of_theirs(tmp_path):
    duel = Duel(DUELS[0].item, "</script><b>bold</b>", "plain")
    export_pairs([duel], tmp_path, count=1, seed=1, suite="s", opponent="base")
    page = (tmp_path / "form.html").read_text()
    assert "</script><b>" not in page
    assert "\\u003cb>bold" in page


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "zz", "choice": "one"}], "was not exported"),
        ([{"id": "x", "choice": "left"}], "is no choice"),
        (["text"], "is no choice"),
        ([{"id": "first", "choice": "one"}] * 2, "a second time"),
    ],
)
def test_rows_that_do_not_belong_are_refused(folder, rows, says):
    first = shown(folder)[0]["id"]
    rows = [
        {**row, "id": first} if isinstance(row, dict) and row["id"] == "first" else row
        for row in rows
    ]
    with pytest.raises(InputError, match=says):
        choose(folder, rows)


def test_more_pairs_than_there_are_cannot_be_exported(tmp_path):
    with pytest.raises(InputError, match="the suite has 40"):
        export_pairs(DUELS, tmp_path, count=41, seed=1, suite="s", opponent="base")
