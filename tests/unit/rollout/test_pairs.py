"""Judged pairs as one more e-process: who is aborted, how often by mistake, at what cost."""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import InputError, Unavailable
from trainyard.recipe import read_recipe
from trainyard.recipe.strategy import JudgedSpec
from trainyard.rollout import pairs
from trainyard.rollout.pairs import Bench, Judged, Pair
from trainyard.rollout.verdict import Verdict

SPEC = JudgedSpec(suite="duel", margin=0.1, min_pairs=10, max_pairs=20)
FINE = Verdict(decision="go_on", reason="no breach", e_value=1.0)


def pair(i: int) -> Pair:
    return Pair(request_id=f"r{i}", messages=(), candidate="a", champion="b")


def judged(shares: Sequence[float | None]) -> Judged:
    return Judged().take([pair(i) for i in range(len(shares))], shares, SPEC)


def test_one_that_loses_most_pairs_is_aborted_with_its_figures() -> None:
    found = pairs.hold(FINE, judged([0.0] * 25 + [1.0]), SPEC)
    assert (found.decision, found.metric) == ("abort", "judged pairs")
    assert "wins 3.8% of 26 judged pairs; e-value" in found.reason
    assert found.samples == ("r20", "r21", "r22", "r23", "r24")


@pytest.mark.parametrize(
    ("shares", "decision"),
    [([0.5] * 200, "go_on"), ([1.0] * 50, "go_on"), ([1.0] * 9, "wait"), ([], "wait"),
     ([None] * 50, "wait")],
)  # fmt: skip
def test_ties_and_wins_go_on_and_too_few_verdicts_wait(
    shares: list[float | None], decision: str
) -> None:
    assert pairs.hold(FINE, judged(shares), SPEC).decision == decision


def test_an_abort_of_another_kind_keeps_its_reason_first() -> None:
    other = Verdict(decision="abort", reason="crashed", metric="crash")
    found = pairs.hold(other, judged([0.0] * 50), SPEC)
    assert (found.metric, found.reason.split(";")[0]) == ("crash", "crashed")


def test_a_win_rate_at_the_margin_is_aborted_no_more_often_than_alpha() -> None:
    rng, aborted = random.Random(0), 0
    spec = SPEC.model_copy(update={"alpha": 0.05})
    for _ in range(200):
        state = Judged()
        for i in range(100):
            state = state.take([pair(i)], [float(rng.random() < 0.4)], spec)
            if pairs.hold(FINE, state, spec).decision == "abort":
                aborted += 1
                break
    assert aborted <= 16  # 10 expected at most; 16 at the 97.5 % of the binomial


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    with (folder / "pairs.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(i: int, version: str, text: str) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"question {i}"}]
    return {"request_id": f"r{i}", "version": version, "messages": asked, "answer": text}


def test_a_pair_is_two_answers_to_one_request_by_these_two_versions(tmp_path: Path) -> None:
    write(tmp_path, [row(0, "new", "x"), row(1, "new", "y"), row(0, "old", "z"),
                     row(1, "other", "w"), row(2, "old", "v")])  # fmt: skip
    (found,) = pairs.read(tmp_path, "new", "old")
    assert (found.request_id, found.candidate, found.champion) == ("r0", "x", "z")


def settle(bench: Bench, state: Judged, asked: int) -> Judged:
    end = time.monotonic() + 60
    while len(state.asked) < asked and time.monotonic() < end:
        state = bench.look(state)
        time.sleep(0.005)
    return state


def test_no_more_pairs_are_judged_than_are_paid_for(tmp_path: Path) -> None:
    write(tmp_path, [row(i, version, "x") for i in range(50) for version in ("new", "old")])
    asked: list[str] = []

    def judge(batch: Sequence[Pair]) -> list[float]:
        asked.extend(one.request_id for one in batch)
        return [0.5] * len(batch)

    bench = Bench(judge, SPEC, tmp_path, ("new", "old"))
    state = settle(bench, Judged(), SPEC.max_pairs)
    later = Bench(judge, SPEC, tmp_path, ("new", "old"))  # of the next step
    for _ in range(10):
        state = later.look(state)
    assert len(state.asked) == len(asked) == len(set(asked)) == SPEC.max_pairs


def test_a_juror_that_is_away_is_waited_for_and_no_error(tmp_path: Path) -> None:
    write(tmp_path, [row(0, "new", "x"), row(0, "old", "y")])

    def judge(batch: Sequence[Pair]) -> list[float]:
        raise Unavailable("nobody there")

    state = settle(Bench(judge, SPEC, tmp_path, ("new", "old")), Judged(), 1)
    assert (len(state.asked), state.n) == (1, 0)
    assert pairs.hold(FINE, state, SPEC).decision == "wait"


def test_a_suite_that_is_not_pairwise_is_refused() -> None:
    path = Path("recipes/quickstart.yaml")
    with pytest.raises(InputError, match=r"evaluate\.suites has no pairwise suite of that name"):
        read_recipe(path, {"deploy.strategy.judged": {"suite": "tickets"}})
