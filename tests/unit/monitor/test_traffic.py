"""Error budgets and feedback from the gateway's records: no data is not health."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.monitor import quality, questions, traffic
from trainyard.monitor.finding import Finding, Health
from trainyard.monitor.questions import DriftMemory
from trainyard.monitor.traffic import Traffic
from trainyard.recipe.monitor import DriftSpec, FeedbackSpec, MonitorSpec
from trainyard.recipe.strategy import SloSpec

OBJECTIVES = SloSpec(min_requests=50, latency_s=2.0)
FEEDBACK = FeedbackSpec(baseline=20, margin=0.1)
NOW = 1_000_000.0


def record(at: float, **rest: Any) -> dict[str, Any]:
    return {
        "at": at, "digest": "a", "variant": "champion", "source": "live", "ok": True,
        "seconds": 0.5, "flags": [], "request_id": "r", "score": None, **rest,
    }  # fmt: skip


def seen(records: list[dict[str, Any]], now: float = NOW) -> Traffic:
    return traffic.take(Traffic(version="a"), records, OBJECTIVES, FEEDBACK, now)


def availability(records: list[dict[str, Any]], *, lost: int = 0, now: float = NOW) -> Finding:
    found = traffic.check_budget(seen(records, now), MonitorSpec(), OBJECTIVES, lost, now)
    return found[0]


def test_a_good_champion_is_healthy_and_an_erring_one_burns_its_budget() -> None:
    good = [record(NOW - i) for i in range(200)]
    assert availability(good).health is Health.HEALTHY
    bad = [record(NOW - i, ok=i % 5 > 0) for i in range(200)]
    found = availability(bad)
    assert (found.health, found.then) == (Health.BREACH, "rollback")
    assert "40 of 200 answers bad" in found.reason


def test_slow_answers_burn_the_budget_of_latency_alone() -> None:
    slow = [record(NOW - i, seconds=3.0) for i in range(200)]
    first, second = traffic.check_budget(seen(slow), MonitorSpec(), OBJECTIVES, 0, NOW)
    assert (first.health, second.health) == (Health.HEALTHY, Health.BREACH)
    assert second.check == "latency within 2 s"


def test_errors_of_an_hour_ago_do_not_ring_now() -> None:
    old = [record(NOW - 1200 - i, ok=False) for i in range(100)]
    fresh = [record(NOW - i) for i in range(200)]
    found = availability([*old, *fresh])
    assert found.health is not Health.BREACH or "6 h" in found.reason


@pytest.mark.parametrize(
    ("records", "lost", "words"),
    [
        ([], 0, "it has answered nobody yet"),
        ([record(NOW - 5000 - i) for i in range(200)], 0, "its last is 5000 s old"),
        ([record(NOW - i) for i in range(10)], 0, "too few of 50"),
        ([record(NOW - i) for i in range(200)], 7, "7 records were lost"),
        ([record(NOW - i, digest="b") for i in range(200)], 0, "answered nobody yet"),
        ([record(NOW - i, source="replay") for i in range(200)], 0, "answered nobody yet"),
    ],
    ids=["none", "stale", "few", "lost", "another version", "our own"],
)
def test_what_is_missing_stale_or_not_users_is_inconclusive(
    records: list[dict[str, Any]], lost: int, words: str
) -> None:
    found = availability(records, lost=lost)
    assert found.health is Health.INCONCLUSIVE
    assert words in found.reason


def test_feedback_that_turns_bad_is_a_breach_that_asks_for_a_release() -> None:
    said = [record(NOW, source="feedback", score=1.0) for _ in range(20)]
    before = seen(said)
    assert traffic.check_feedback(before, FEEDBACK).health is Health.INCONCLUSIVE
    more = [record(NOW, source="feedback", score=-1.0 if i % 4 else 1.0) for i in range(80)]
    after = traffic.take(before, more, OBJECTIVES, FEEDBACK, NOW)
    found = traffic.check_feedback(after, FEEDBACK)
    assert (found.health, found.then) == (Health.BREACH, "release")
    assert "0 bad of the first 20, 60 of 80 since" in found.reason


def test_counts_are_kept_between_looks_and_forgotten_after_the_longest_window() -> None:
    first = seen([record(NOW - i) for i in range(60)])
    kept = Traffic.model_validate_json(first.model_dump_json())
    later = traffic.take(kept, [record(NOW + 5)], OBJECTIVES, None, NOW + 5)
    assert sum(count.n for count in later.counts) == 61
    gone = traffic.take(later, [], OBJECTIVES, None, NOW + traffic.KEPT_S + 20)
    assert gone.counts == ()


SPEC = DriftSpec(short=40, long=80, reference=60)
TRAINED = [f"my order {i} of a charger is late please refund it" for i in range(60)]


def rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": text}]} for text in texts]


def test_a_test_stands_until_a_window_of_new_questions_is_there() -> None:
    texts = [f"my order {i} of a cable is late please refund it" for i in range(40)]
    first = questions.check_drift(SPEC, rows(texts), TRAINED, DriftMemory())
    assert first.tested == 40
    more = [*texts, *TRAINED[:39]]
    assert questions.check_drift(SPEC, rows(more), TRAINED, first) is first
    assert questions.check_drift(SPEC, rows([*more, "one"]), TRAINED, first).tested == 80


def test_other_questions_are_a_breach_that_says_which() -> None:
    texts = [f"how do I titrate the enzyme buffer number {i}" for i in range(40)]
    found = questions.check_drift(SPEC, rows(texts), TRAINED, DriftMemory()).finding
    assert found is not None
    assert found.health is Health.BREACH
    assert {"enzyme", "titrate", "buffer"} & set(found.evidence["more"])
    assert found.evidence["auc"] > 0.9
    assert "titrate" in found.evidence["samples"][0]


def test_traffic_is_compared_with_its_own_beginning() -> None:
    spec = SPEC.model_copy(update={"against": "traffic"})
    texts = [*TRAINED, *(f"how do I titrate the enzyme buffer {i}" for i in range(40))]
    found = questions.check_drift(spec, rows(texts), None, DriftMemory()).finding
    assert found is not None
    assert found.health is Health.BREACH


@pytest.mark.parametrize(
    ("texts", "trained"), [(TRAINED[:39], TRAINED), (TRAINED, TRAINED[:29]), (TRAINED, None)]
)
def test_too_little_to_compare_is_inconclusive(texts: list[str], trained: list[str] | None) -> None:
    found = questions.check_drift(SPEC, rows(texts), trained, DriftMemory()).finding
    assert found is not None
    assert found.health is Health.INCONCLUSIVE


def test_what_was_trained_on_is_redacted_as_the_log_is(tmp_path: Path) -> None:
    made = [
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": f"write to a{i}@example.com"},
                      {"role": "assistant", "content": "done"}]}
        for i in range(50)
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    found = questions.trained_on(tmp_path, 10)
    assert found == ["write to <email>"] * 10


def test_a_half_written_line_of_the_log_is_left_for_the_next_look(tmp_path: Path) -> None:
    (tmp_path / "requests.old.jsonl").write_text('{"version": "a", "at": 1}\n')
    (tmp_path / "requests.jsonl").write_text(
        '{"version": "b", "at": 2}\n{"version": "a", "at": 3}\n{"vers'
    )
    assert [row["at"] for row in questions.logged(tmp_path, "a")] == [1, 3]


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, Stat Med 17:873, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10."""
    for k, n, j, m, low, high in ((56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090)):
        found = quality.difference([1.0] * k + [0.0] * (n - k), [1.0] * j + [0.0] * (m - j), 0.95)
        assert found == pytest.approx((low, high), abs=5e-5)
