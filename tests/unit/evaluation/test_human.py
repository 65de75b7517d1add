import json

import pytest

from trainyard.errors import InputError
from trainyard.evaluation import human
from trainyard.evaluation.judge.rate import item_scores
from trainyard.evaluation.judge.suite import Duel
from trainyard.evaluation.samples import Item
from trainyard.recipe.gates import GateSpec

PAIR = GateSpec(id="people", metric="human_win_rate", op=">", value=0.5, suite="s",
                opponent="base", sample=20)  # fmt: skip
SINGLE = GateSpec(id="spot", metric="human_issue_rate", op="<=", value=0.05, suite="s", sample=20)
ROWS = [
    {"suite": "s", "id": f"i{i}", "arm": arm, "prompt": f"ask {i}", "request": f"ask {i}",
     "reference": f"right {i}", "text": f"{arm} {i}"}
    for i in range(40)
    for arm in ("candidate", "base")
]  # fmt: skip


def answers(form, choose):
    return [
        {"form": form.digest, "id": i["id"], "shown": i["shown"], "choice": choose(i)}
        for i in form.items
    ]


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def prefer_candidate(item):
    return "one" if item["one"].startswith("candidate") else "two"


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_who_always_prefers_the_candidate_gives_it_every_win(order):
    form = human.draw(PAIR, ROWS, 1)
    assert order in form.orders.values()
    choices = human.read_answers(text(answers(form, prefer_candidate)), form, "f")
    assert {score.value for score in human.scores(form, choices, {})} == {1.0}
    labels = human.judgements(form, choices)
    assert set(item_scores(labels).values()) == {1.0}
    item = Item("i3", ({"role": "user", "content": "ask 3"},))
    digests = {row.id: row.answers for row in labels}
    assert digests.get("i3", Duel(item, "candidate 3", "base 3").digest) == (
        Duel(item, "candidate 3", "base 3").digest
    )


def test_an_issue_counts_one_and_is_shown_again():
    form = human.draw(SINGLE, ROWS, 1)
    bad = form.items[3]["id"]
    choices = human.read_answers(
        text(answers(form, lambda i: "issue" if i["id"] == bad else "good")), form, "f"
    )
    found = human.scores(form, choices, {bad: "c"})
    assert [(s.id, s.cluster) for s in found if s.value] == [(bad, "c")]
    assert [item["id"] for item in human.issues(form, choices)] == [bad]


def test_the_form_follows_from_answers_gate_and_seed():
    form = human.draw(PAIR, ROWS, 1)
    assert human.draw(PAIR, reversed(ROWS), 1) == form
    assert human.draw(PAIR, ROWS, 2).digest != form.digest
    changed = [{**row, "text": row["text"] + "!"} for row in ROWS]
    assert human.draw(PAIR, changed, 1).digest != form.digest


def test_people_cannot_tell_whose_answer_stands_where(tmp_path):
    form = human.draw(PAIR, [{**r, "text": r["text"].split()[1]} for r in ROWS], 1)
    human.write(form, tmp_path)
    page = (tmp_path / "form.html").read_text() + (tmp_path / "items.jsonl").read_text()
    assert not [word for word in ("candidate", "champion", "base", '"AB"') if word in page]
    assert 4 <= list(form.orders.values()).count("AB") <= 16


def test_the_form_holds_the_answers_and_no_markup_of_theirs(tmp_path):
    rows = [{**row, "text": "</script><b>bold</b>"} for row in ROWS]
    human.write(human.draw(SINGLE, rows, 1), tmp_path)
    page = (tmp_path / "form.html").read_text()
    assert "</script><b>" not in page
    assert "\\u003cb>bold" in page
    assert "http" not in page.replace("http-equiv", "")


def test_lost_newlines_do_no_harm():
    form = human.draw(PAIR, ROWS, 1)
    pasted = text(answers(form, prefer_candidate)).replace("\n", "")
    assert len(human.read_answers(pasted, form, "f")) == 20


FOREIGN = human.draw(PAIR, ROWS, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:12], "answers 12 of 20"),
        (lambda rows: [], "answers 0 of 20"),
        (lambda rows: answers(FOREIGN, prefer_candidate), "belongs to another form"),
        (lambda rows: [rows[0], *rows], "a second one on"),
        (lambda rows: [{**rows[0], "shown": rows[1]["shown"]}, *rows[1:]], "does not show it"),
        (lambda rows: [{**rows[0], "id": "zz"}, *rows[1:]], "does not show it"),
        (lambda rows: [{**rows[0], "choice": "left"}, *rows[1:]], "one of one, two, tie"),
        (lambda rows: [{"id": "i1", "choice": "one"}], "is no answer"),
        (lambda rows: ["text"], "is no answer"),
    ],
    ids=["partial", "empty", "foreign", "twice", "tampered", "unknown", "choice", "old", "text"],
)
def test_answers_that_do_not_fit_are_refused_in_one_sentence(change, says):
    form = human.draw(PAIR, ROWS, 1)
    with pytest.raises(InputError, match=says) as error:
        human.read_answers(text(change(answers(form, prefer_candidate))), form, "f.jsonl")
    assert "f.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["<html>", "{", '{"form": ', "[" * 9000])
def test_a_file_that_is_none_is_refused(given):
    with pytest.raises(InputError, match=r"f\.jsonl"):
        human.read_answers(given, human.draw(PAIR, ROWS, 1), "f.jsonl")


def test_more_samples_than_were_answered_are_refused():
    with pytest.raises(InputError, match="shows 20 samples, and suite s has 5"):
        human.draw(PAIR, ROWS[:10], 1)
