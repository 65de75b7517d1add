"""Objectives and alarms, against the numbers of Google's SRE workbook, chapter 5."""

from collections.abc import Iterator

import pytest

from trainyard.recipe.deploy import SloSpec
from trainyard.rollout.slo import PAGE, Kept, Look, Objective, alarm, burn_rate, hold, objectives
from trainyard.rollout.verdict import Outcome, Verdict

SPEC = SloSpec(availability=0.99, latency_s=1.0, latency_share=0.95, min_requests=100)
GO_ON = Verdict(decision="go_on", reason="planned sample reached")
MONTH_S = 30 * 86400
AVAILABLE = Objective("availability", 0.001, lambda o: o.failed)


def answers(
    canary: bool, n: int, failed: int = 0, slow: int = 0, seconds: float = 0.2
) -> Iterator[Outcome]:
    for i in range(n):
        late = failed <= i < failed + slow
        yield Outcome(canary=canary, failed=i < failed, seconds=2.0 if late else seconds)


def judged(canary: list[Outcome], champion: list[Outcome], found: Verdict = GO_ON) -> Verdict:
    kept = Kept().take([*canary, *champion], SPEC)
    return hold(found, kept, SPEC, alpha=0.01)


def test_who_keeps_both_objectives_goes_on() -> None:
    found = judged(list(answers(True, 200, failed=1, slow=4)), list(answers(False, 2000)))
    assert (found.decision, found.reason) == ("go_on", GO_ON.reason)


def test_a_candidate_that_breaks_one_is_aborted_though_the_champion_does_no_better() -> None:
    found = judged(list(answers(True, 400, failed=30)), list(answers(False, 4000, failed=300)))
    assert (found.decision, found.metric) == ("abort", "availability")
    assert "30 of 400 answers bad (7.50%), budget 1.00%; champion 300 of 4000" in found.reason


def test_latency_is_an_objective_of_its_own() -> None:
    found = judged(list(answers(True, 400, slow=80)), list(answers(False, 400)))
    assert (found.decision, found.metric) == ("abort", "latency within 1 s")


def test_a_champion_that_breaks_one_is_named_and_holds_nobody_up() -> None:
    found = judged(list(answers(True, 400)), list(answers(False, 4000, failed=300)))
    assert found.decision == "go_on"
    assert "the champion itself breaks its objective: availability: 300 of 4000" in found.reason


def test_few_answers_neither_keep_nor_break_it() -> None:
    few = judged(list(answers(True, 99, failed=99)), list(answers(False, 99, failed=99)))
    assert few.decision == "wait"
    assert "availability wants 100 answers, there are 99" in few.reason


def test_past_the_budget_without_proof_waits() -> None:
    found = judged(list(answers(True, 150, failed=2)), list(answers(False, 150)))
    assert found.decision == "wait"
    assert "2 of 150 answers bad (1.33%), budget 1.00%" in found.reason


def test_an_abort_stays_one() -> None:
    gone = Verdict(decision="abort", reason="crash")
    assert judged([], [], gone) == gone


def test_without_a_latency_there_is_one_objective() -> None:
    assert [o.name for o in objectives(SloSpec())] == ["availability"]


# Table 5-4: burn rates, error rates of a 99.9 % objective, time to spend 30 days' budget
@pytest.mark.parametrize(
    ("errors_per_100_000", "burn", "spent_in_s"),
    [(100, 1, MONTH_S), (200, 2, 15 * 86400), (1000, 10, 3 * 86400), (100_000, 1000, 43.2 * 60)],
)
def test_burn_rates_are_the_published_ones(
    errors_per_100_000: int, burn: float, spent_in_s: float
) -> None:
    found = burn_rate(errors_per_100_000, 100_000, AVAILABLE.budget)
    assert found == pytest.approx(burn)
    assert MONTH_S / found == pytest.approx(spent_in_s)


# Table 5-6: page at 2 % of the budget in 1 h, 5 % in 6 h; the short window is 1/12 of the long
@pytest.mark.parametrize(("window", "share"), list(zip(PAGE, (0.02, 0.05), strict=True)))
def test_windows_spend_the_published_share_of_the_budget(
    window: tuple[float, ...], share: float
) -> None:
    long_s, short_s, burn = window
    assert burn * long_s / MONTH_S == pytest.approx(share)
    assert short_s == long_s / 12


def minutes(count: int, bad_share: float, start: float = 0) -> list[Look]:
    """A look each minute, 1000 answers each."""
    return [Look(start + 60 * i, 1000, round(1000 * bad_share)) for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("bad_share", "rings"),
    [(0.014, False), (0.015, True), (1.0, True)],  # 14.4 times 0.1 % is 1.44 %
)
def test_an_hour_at_14_4_times_the_budget_rings(bad_share: float, rings: bool) -> None:
    looks = minutes(60, bad_share)
    assert bool(alarm(looks, 3600, AVAILABLE, 100, PAGE[:1])) is rings


def test_a_total_outage_rings_within_the_first_minute() -> None:
    """The workbook: 14.4 * 1 h * 0.1 % / 100 % is 52 s of an outage."""
    healthy = minutes(59, 0.0)
    assert alarm(healthy, 59 * 60, AVAILABLE, 100) is None
    assert alarm([*healthy, Look(3600, 1000, 1000)], 3600, AVAILABLE, 100)


def test_it_stops_ringing_five_minutes_after_the_fire() -> None:
    looks = [*minutes(10, 0.5), *minutes(5, 0.0, start=600)]
    assert alarm(looks[:10], 600, AVAILABLE, 100)
    assert alarm(looks, 901, AVAILABLE, 100, PAGE[:1]) is None


def test_the_slow_fire_rings_in_the_long_window() -> None:
    looks = minutes(360, 0.007)
    assert "6 h" in (alarm(looks, 360 * 60, AVAILABLE, 100) or "")


def test_few_answers_ring_no_alarm() -> None:
    assert alarm([Look(10, 99, 99)], 10, AVAILABLE, 100) is None
