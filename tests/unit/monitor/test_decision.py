"""What follows from findings, and what must wait."""

from typing import Any

import pytest

from trainyard.monitor.decision import Action, Situation, decide
from trainyard.monitor.finding import Finding, Health, breach, healthy, unknown, worst
from trainyard.recipe.monitor import MonitorSpec, RequestSpec

DAY = 86_400.0
SPEC = MonitorSpec(release=RequestSpec(cooldown_s=DAY, budget=2, budget_s=10 * DAY))
HERE = Situation(model="m", version="a" * 64)
DRIFT = breach("drift", "p 0.001", "release")
BURN = breach("availability", "burns 20 times too fast", "rollback")


def run(
    findings: list[Finding],
    history: list[Action] | None = None,
    now: float = 0.0,
    here: Situation = HERE,
    **rules: Any,
) -> dict[str, Action]:
    spec = SPEC.model_copy(update=rules)
    return {a.kind: a for a in decide(findings, here, history or [], spec, now)}


def done(actions: dict[str, Action]) -> list[Action]:
    return [
        a.model_copy(update={"status": "done"}) if a.status == "intended" else a
        for a in actions.values()
    ]


def test_healthy_and_merely_unknown_call_for_nothing() -> None:
    assert run([healthy("served", "a answers"), unknown("drift", "12 questions")]) == {}


@pytest.mark.parametrize(
    ("findings", "health"),
    [
        ([], Health.INCONCLUSIVE),  # nothing was looked at
        ([healthy("a", ""), unknown("b", "")], Health.INCONCLUSIVE),
        ([healthy("a", ""), unknown("b", ""), breach("c", "", None)], Health.BREACH),
        ([healthy("a", "")], Health.HEALTHY),
    ],
)
def test_what_is_not_known_is_never_healthy(findings: list[Finding], health: Health) -> None:
    assert worst(findings) is health


def test_a_breach_rings_once_until_it_may_ring_again() -> None:
    first = run([DRIFT])
    assert first["alert"].status == "intended"
    assert first["alert"].checks == ("drift",)
    assert "alert" not in run([DRIFT], done(first), now=60)
    both = run([DRIFT, breach("served", "b answers", "alert")], done(first), now=60)
    assert both["alert"].checks == ("served",)
    assert "alert" in run([DRIFT], done(first), now=SPEC.alert_again_s + 1)


def test_a_release_asked_for_twice_within_the_cooldown_starts_once() -> None:
    first = run([DRIFT])
    assert first["release"].status == "intended"
    second = run([DRIFT], done(first), now=3600)
    assert second["release"].status == "held"
    assert "asked for 3600 s ago; 82800 s to wait" in second["release"].outcome
    assert run([DRIFT], done(first), now=DAY + 1)["release"].status == "intended"


def test_the_budget_holds_what_the_cooldown_would_let_through() -> None:
    history: list[Action] = []
    for day in range(3):
        history += done(run([DRIFT], history, now=day * 2 * DAY))
    last = history[-1]
    assert (last.kind, last.status) == ("release", "held")
    assert "2 releases were asked for within 10 days, the budget is 2" in last.outcome
    assert run([DRIFT], history, now=11 * DAY)["release"].status == "intended"


def test_a_failed_request_does_not_count() -> None:
    failed = [a.model_copy(update={"status": "failed"}) for a in run([DRIFT]).values()]
    assert run([DRIFT], failed, now=60)["release"].status == "intended"


def test_an_intention_that_was_cut_short_is_taken_up_under_its_own_id() -> None:
    first = run([DRIFT])
    again = run([DRIFT], list(first.values()), now=60)
    assert again["release"].id == first["release"].id
    assert run([DRIFT], done(first), now=2 * DAY)["release"].id != first["release"].id


def test_a_burning_budget_goes_back_and_asks_for_nothing_meanwhile() -> None:
    found = run([BURN, DRIFT])
    assert found["rollback"].status == "intended"
    assert found["release"].outcome == "the former champion comes back first"


def test_without_a_former_champion_it_only_rings() -> None:
    here = HERE.model_copy(update={"no_way_back": "there is no former champion"})
    found = run([BURN], here=here)
    assert (found["rollback"].status, found["rollback"].outcome) == ("held", here.no_way_back)
    assert found["alert"].status == "intended"


def test_a_release_that_goes_on_is_not_asked_for_again() -> None:
    here = HERE.model_copy(update={"releasing": "m-20261121"})
    assert run([DRIFT], here=here)["release"].outcome == "m-20261121 goes on"
