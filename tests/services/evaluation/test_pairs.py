"""A candidate whose answers jurors like less goes back: real gateway, real HTTP, scripted juror."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.services.evaluation.test_judge import blocks, fair
from tests.services.rollout.test_local import REPLAY, SPEC, local_target, version
from trainyard import rollout
from trainyard.recipe import read_recipe
from trainyard.recipe.strategy import BlueGreen, Canary
from trainyard.release.job import Job
from trainyard.release.judged import judge_of
from trainyard.rollout.gateway_target import GatewayTarget
from trainyard.rollout.pairs import Pair

QUICK = {"min_requests": 8, "requests": 150, "margin": 0.3, "look_s": 0.2, "latency_tolerance": 5,
         "judged": {"suite": "duel", "min_pairs": 30, "max_pairs": 40}}  # fmt: skip


def job(home: Path, url: str, **juror: Any) -> Job:
    recipe = read_recipe(Path("recipes/quickstart.yaml"))
    suite = {"name": "duel", "kind": "pairwise", "opponent": "champion", "max_cost_usd": 1.0,
             "data": "recipes/quickstart/eval.jsonl",
             "jurors": [{"base_url": url, "model": "judge-2026-01-01", **juror}]}  # fmt: skip
    raw = recipe.model_dump()
    raw["evaluate"]["suites"] = [*raw["evaluate"]["suites"], suite]
    made = type(recipe).model_validate(raw)
    return Job(recipe=made, recipe_path="r.yaml", run_id="r", home=home)


def judged(home: Path, strategy: Any) -> GatewayTarget:
    return local_target(home, SPEC.model_copy(update={"strategy": strategy}))


@contextmanager
def users(target: GatewayTarget) -> Iterator[None]:
    """Send requests meanwhile."""
    stop = threading.Event()

    def use() -> None:
        with httpx.Client(base_url=target.endpoint(), trust_env=False, timeout=60) as client:
            for i in itertools.count():
                text = f"live question {i} of jo@example.com"
                body = {"messages": [{"role": "user", "content": text}]}
                client.post("/v1/chat/completions", json=body)
                if stop.wait(0.02):
                    return

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def roll(target: GatewayTarget, spec: Any, tmp_path: Path, judge: Any, **behaviour: Any) -> Any:
    controlled = rollout.begin(
        target, version(tmp_path, "bbbbbbbb", **behaviour), spec=spec, replay=REPLAY
    )
    controlled.judge = judge
    while controlled.next_step is not None:
        controlled.step()
    return controlled


def test_replayed_pairs_send_back_what_jurors_like_less(
    tmp_path: Path, openai_server: Any, chat: Any
) -> None:
    server = openai_server(fair(chat))
    strategy = Canary(steps=(20,), **QUICK)
    spec = SPEC.model_copy(update={"strategy": strategy})
    target = judged(tmp_path / "home", strategy)
    try:
        assert rollout.run(target, version(tmp_path, "aaaaaaaa", answer="right"), spec=spec)
        judge = judge_of(job(tmp_path, server.url), "duel")
        done = roll(target, spec, tmp_path, judge, answer="wrong, and nobody sees it in a code")
        last = done.state.done[-1]
        assert (done.state.phase, last.metric) == ("aborted", "judged pairs"), last.reason
        assert last.samples
        assert len(server.seen) <= 2 * strategy.judged.max_pairs
        shown = [blocks(body) for body in server.seen]
        first = sum(one["answer A"] == "right" for one in shown)
        # each pair is shown in both orders, but for those on their way when the step ended
        assert abs(first - len(shown) / 2) <= 2
    finally:
        target.down()


def test_copied_pairs_are_redacted_and_an_equal_candidate_is_promoted(
    tmp_path: Path, openai_server: Any, chat: Any
) -> None:
    server = openai_server(fair(chat))
    strategy = BlueGreen(shadow_pct=100, replay=False, **{**QUICK, "requests": 60})
    spec = SPEC.model_copy(update={"strategy": strategy})
    target = judged(tmp_path / "home", strategy)
    try:
        assert rollout.run(target, version(tmp_path, "aaaaaaaa", answer="right"), spec=spec)
        judge = judge_of(job(tmp_path, server.url), "duel")
        with users(target):
            done = roll(target, spec, tmp_path, judge, answer="right as well")
        assert done.promoted, done.state.reason
        shadow = next(step for step in done.state.done if step.step == "shadow")
        assert "judged pairs" in shadow.reason
        assert done.state.judged.n >= 30
        rows = [json.loads(row) for row in (target.folder / "pairs.jsonl").read_text().splitlines()]
        assert {row["variant"] for row in rows} == {"champion", "canary"}
        assert all("<email>" in row["messages"][0]["content"] for row in rows)
    finally:
        target.down()


def test_a_budget_that_is_spent_asks_nobody_and_aborts_nobody(
    tmp_path: Path, openai_server: Any, chat: Any
) -> None:
    server = openai_server(fair(chat))
    dear = judge_of(job(tmp_path, server.url, usd_per_million_output=1e6), "duel")
    shares = dear([Pair(request_id="r", messages=({"role": "user", "content": "q"},),
                                      candidate="wrong", champion="right")])  # fmt: skip
    assert shares == [None]
    assert server.seen == []
