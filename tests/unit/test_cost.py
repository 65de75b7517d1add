import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trainyard import cost, files, reservations
from trainyard.cost import Entry, Prices, TokenPrice
from trainyard.errors import InputError, Refused
from trainyard.recipe import Recipe, read_recipe
from trainyard.release.job import Job
from trainyard.run import StageSummary, Summary

NOW = datetime(2026, 11, 21, tzinfo=UTC)
GPU = {"resources.gpus": 2, "resources.gpu": "L4", "resources.price_per_gpu_hour": 3.0}


def recipe(**keys: Any) -> Recipe:
    named = {key.replace("__", "."): value for key, value in keys.items()}
    return read_recipe(Path("recipes/quickstart.yaml"), GPU | named)


def job(home: Path, found: Recipe, run_id: str = "r1") -> Job:
    return Job(recipe=found, recipe_path="r.yaml", run_id=run_id, home=home)


def summary(*stages: StageSummary) -> Summary:
    process: Any = {"pid": 1, "started": 1.0, "name": "release"}
    return Summary.model_construct(
        run_id="r1", recipe="quickstart", process=process, stages=list(stages), verdict="PASS"
    )


def stage(name: str, seconds: float, *, skipped: bool = False, queue_s: float = 0) -> StageSummary:
    return StageSummary(
        name=name, status="done", seconds=seconds, skipped=skipped, queue_s=queue_s or None
    )


def spend(home: Path, amount: float, *, month: str = "2026-11", model: str = "quickstart") -> None:
    one = Entry(
        time=f"{month}-03T00:00:00+00:00", run_id="r0", recipe=model, gpus=1, gpu=None,
        price_per_gpu_hour=1, currency="USD", train_s=100, estimated_train_s=120, evaluate_s=60,
        queue_s=0, gpu_hours=amount, judge_tokens=0, judge=0, estimated=1, amount=amount,
    )  # fmt: skip
    with (home / cost.BOOK).open("a") as book:
        book.write(one.model_dump_json() + "\n")


def test_all_nodes_train_and_one_evaluates(tmp_path: Path) -> None:
    two = recipe(resources__nodes=2)
    found = cost.measured(
        job(tmp_path, two), summary(stage("train", 3600), stage("evaluate", 900)), NOW
    )
    assert (found.gpus, found.gpu_hours) == (4, pytest.approx(4 + 2 * 900 / 3600))
    assert cost.estimate(two, tmp_path, 3600, {}, Prices()) == pytest.approx(3 * 4)


def test_only_seconds_of_work_on_a_gpu_cost(tmp_path: Path) -> None:
    found = cost.measured(
        job(tmp_path, recipe()),
        summary(stage("data", 900), stage("train", 4000, queue_s=400), stage("evaluate", 900)),
        NOW,
    )
    assert found.gpu_hours == pytest.approx(2 * (3600 + 900) / 3600)
    assert found.amount == pytest.approx(3 * found.gpu_hours)
    assert found.queue_s == 400
    skipped = summary(stage("train", 4000, skipped=True), stage("evaluate", 9, skipped=True))
    assert cost.measured(job(tmp_path, recipe()), skipped, NOW).amount == 0


def test_a_card_has_the_price_of_the_table_and_a_recipe_its_own(tmp_path: Path) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("{currency: EUR, gpu_hour: {L4: 0.5}, judge: {}}")
    prices = cost.read_prices(table)
    by_table = recipe(resources__price_per_gpu_hour=None)
    assert cost.gpu_price(by_table, prices) == 0.5
    assert cost.gpu_price(recipe(), prices) == 3.0
    assert cost.estimate(by_table, tmp_path, 3600, {}, prices) == pytest.approx(1.0)
    assert cost.estimate(by_table, tmp_path, 3600, {}, Prices()) is None
    table.write_text("{gpu_hour: {L5: 0.5}}")
    with pytest.raises(InputError, match=r"prices\.yaml:1: gpu_hour\.L5"):
        cost.read_prices(table)


def test_the_table_of_the_repository_prices_every_card() -> None:
    prices = cost.read_prices()
    assert set(prices.gpu_hour) == {
        "T4", "L4", "A10", "RTX-4090", "A100-40", "L40S", "A100-80", "H100", "H200", "B200"
    }  # fmt: skip


def judged(**juror: Any) -> dict[str, Any]:
    asked = {"base_url": "http://127.0.0.1:9", "model": "judge-2026-01-01", **juror}
    return {
        "name": "duel", "kind": "pairwise", "data": "recipes/quickstart/eval.jsonl", "limit": 100,
        "opponent": "base", "jurors": [asked], "max_cost_usd": 50,
    }  # fmt: skip


def test_judges_cost_what_their_replies_said(tmp_path: Path) -> None:
    found = recipe(evaluate__suites=[judged()], gates=["win_rate > 0.5"])
    prices = Prices(judge={"judge-2026-01-01": TokenPrice(input=1, output=4)})
    calls = 100 * 2
    assert cost.judging(found, {"duel": 100}, prices) == pytest.approx(
        calls * ((700 + 2 * 512) * 1 + 1024 * 4) / 1e6
    )
    run = job(tmp_path, found)
    account = {"input_tokens": 1_000_000, "output_tokens": 500_000, "spent_usd": 0.0, "cap_usd": 50}
    files.write_json(
        run.folder / "evaluation/evaluation.json", {"judges": {"duel": {"account": account}}}
    )
    assert cost._judged(run, prices) == (1_500_000, pytest.approx(3.0))
    own = judged(usd_per_million_input=2.0, usd_per_million_output=2.0)
    run = job(tmp_path, recipe(evaluate__suites=[own], gates=["win_rate > 0.5"]))
    files.write_json(
        run.folder / "evaluation/evaluation.json",
        {"judges": {"duel": {"account": account | {"spent_usd": 2.9}}}},
    )
    assert cost._judged(run, prices)[1] == 2.9


def test_the_book_has_every_run_and_says_how_far_plans_were_off(tmp_path: Path) -> None:
    assert cost.error_words(cost.entries(tmp_path)) is None
    run = job(tmp_path, recipe())
    files.write_json(run.folder / "plan.json", {"time_s": 1200.0, "cost": 2.5})
    entry = cost.book(run, summary(stage("train", 1000), stage("evaluate", 100)))
    assert json.loads((run.folder / "cost.json").read_text()) == entry.model_dump(mode="json")
    assert entry.error == pytest.approx(0.2)
    assert cost.error_words(cost.entries(tmp_path)) == (
        "the last estimate of training time was 20% too long"
    )
    with (tmp_path / cost.BOOK).open("a") as book:
        book.write('{"cut": ')
    run = job(tmp_path, recipe(), "r2")
    files.write_json(run.folder / "plan.json", {"time_s": 600.0, "cost": 2.5})
    with (tmp_path / cost.BOOK).open("a") as book:
        book.write("\n")
    cost.book(run, summary(stage("train", 1000)))
    assert cost.error_words(cost.entries(tmp_path)) == (
        "the last 2 estimates of training time were 30% off; the last 40% too short"
    )


def test_a_run_that_would_break_a_budget_does_not_start(tmp_path: Path) -> None:
    assert cost.over(recipe(), tmp_path, 99, NOW) is None
    small = recipe(budget__per_run=5.0)
    assert cost.over(small, tmp_path, 4.99, NOW) is None
    assert "about 5.01 USD and budget.per_run is 5" in (cost.over(small, tmp_path, 5.01, NOW) or "")
    unknown = recipe(budget__per_run=5.0, resources__gpu=None, resources__price_per_gpu_hour=None)
    assert "the GPU has no price" in (cost.over(unknown, tmp_path, None, NOW) or "")


def test_a_month_counts_the_runs_of_this_recipe_in_this_month(tmp_path: Path) -> None:
    monthly = recipe(budget__per_month=100.0)
    spend(tmp_path, 60)
    spend(tmp_path, 90, month="2026-10")
    spend(tmp_path, 90, model="another")
    assert cost.over(monthly, tmp_path, 39, NOW) is None
    assert "budget.per_month is 100, 60.00 of it spent" in (
        cost.over(monthly, tmp_path, 41, NOW) or ""
    )
    assert cost.month_words(tmp_path, NOW) == ("150.00 USD and 150.00 GPU-hours this month, 2 runs")


def test_a_run_that_has_come_to_cost_too_much_is_stopped_between_stages(tmp_path: Path) -> None:
    run = job(tmp_path, recipe(budget__per_run=5.0))
    cost.check(run, summary(stage("train", 2900)), NOW)
    with pytest.raises(Refused, match=r"budget: .*is 5.*what is finished is kept"):
        cost.check(run, summary(stage("train", 3100)), NOW)


def test_training_gets_the_seconds_that_are_paid_for(tmp_path: Path) -> None:
    assert cost.affordable_s(job(tmp_path, recipe()), NOW) is None
    both = job(tmp_path, recipe(budget__per_run=6.0, budget__per_month=100.0))
    assert cost.affordable_s(both, NOW) == pytest.approx(3600)
    spend(tmp_path, 97)
    assert cost.affordable_s(both, NOW) == pytest.approx(1800)


RESERVE = """
import signal, sys, time
from datetime import UTC, datetime
from pathlib import Path
from trainyard import cost
from trainyard.errors import Refused
from trainyard.recipe import Recipe
from trainyard.release.job import Job
from trainyard.run import Run, working

home, recipe = Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2])
with Run.opened(home, recipe.name, "r.yaml") as run:
    (run.folder / "recipe.json").write_text(sys.argv[2])
    job = Job(recipe=recipe, recipe_path="r.yaml", run_id=run.summary.run_id, home=home)
    try:
        cost.reserve(job, 40.0, datetime.now(UTC))
    except Refused as error:
        sys.exit(print("refused", error))
    with run.stage("train"):
        working(run.folder, "train")
        print("reserved", flush=True)
        time.sleep(600)
"""


def releases(home: Path, found: Recipe, count: int) -> "list[subprocess.Popen[str]]":
    command = [sys.executable, "-c", RESERVE, str(home), found.model_dump_json()]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def test_releases_at_once_do_not_pass_a_cap_together_and_the_killed_are_booked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monthly = recipe(budget__per_month=100.0, register__allow_dirty=True)
    started = releases(tmp_path, monthly, 3)
    try:
        said = [process.stdout.readline() for process in started if process.stdout]
        assert sorted(line.split()[0] for line in said) == ["refused", "reserved", "reserved"]
        (refused,) = (line for line in said if line.startswith("refused"))
        assert "budget.per_month is 100, 80.00 of it spent or reserved by runs" in refused
        assert "spent or reserved" in (cost.over(monthly, tmp_path, 30, datetime.now(UTC)) or "")
        assert cost.settle(tmp_path) == []  # they go on
    finally:
        for process in started:
            process.kill()
            process.communicate()

    # an hour of work before they died, as their marks and their last touch say
    for held in tmp_path.glob("runs/*/reserved.json"):
        begin = time.time() - 3600
        os.utime(held.parent / "working/train", (begin, begin))
        events = (held.parent / "events.jsonl").read_text()
        was = json.loads(events.splitlines()[-1])["time"]
        early = datetime.fromtimestamp(begin - 600, UTC).isoformat(timespec="milliseconds")
        (held.parent / "events.jsonl").write_text(events.replace(was, early))
    booked = cost.settle(tmp_path)
    assert [entry.amount for entry in booked] == [pytest.approx(2 * 3.0, rel=0.01)] * 2
    assert booked[0].queue_s == pytest.approx(600, abs=15)
    assert cost.settle(tmp_path) == []
    assert cost.entries(tmp_path) == booked
    assert reservations.others(tmp_path, "") == []
    assert cost.over(monthly, tmp_path, 80, datetime.now(UTC)) is None


def test_a_run_that_ends_gives_back_what_it_set_aside(tmp_path: Path) -> None:
    run = job(tmp_path, recipe(budget__per_month=100.0))
    run.folder.mkdir(parents=True)
    cost.reserve(run, 60.0, NOW)
    with pytest.raises(Refused, match=r"60\.00 of it spent or reserved"):
        cost.reserve(job(tmp_path, run.recipe, "r2"), 60.0, NOW)
    cost.check(run, summary(stage("train", 3600)), NOW)  # its own is not counted twice
    assert cost.book(run, summary(stage("train", 3600))).amount == 6
    cost.book(run, summary(stage("train", 3600)))
    assert len(cost.entries(tmp_path)) == 1
    assert reservations.others(tmp_path, "") == []
