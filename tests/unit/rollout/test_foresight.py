import pytest

from trainyard.recipe.deploy import AllAtOnce, Canary, DeploySpec
from trainyard.rollout.foresight import foresee

STRATEGY = Canary(steps=(5, 50), min_requests=30, requests=300, look_s=15)
SPEC = DeploySpec(strategy=STRATEGY, expected_requests_per_s=20)


def test_traffic_tells_how_long_each_step_takes() -> None:
    first, second = foresee(SPEC)
    assert (first.step, first.least_s, first.planned_s) == ("5 %", 30, 300)
    assert (second.step, second.least_s, second.planned_s) == ("50 %", 3, 30)


def test_the_time_to_find_a_fault_is_that_of_the_simulation() -> None:
    """bench/rollout_verdict.py: median 30 s for 20 % errors and 105 s for latency x 1.3."""
    first, _ = foresee(SPEC)
    assert first.errors_20_pct_s == pytest.approx(30, rel=0.5)
    assert first.latency_13_s == pytest.approx(105, rel=0.6)


def test_too_few_users_are_seen_beforehand() -> None:
    slow = SPEC.model_copy(update={"expected_requests_per_s": 0.1})
    first, _ = foresee(slow)
    assert not first.enough


@pytest.mark.parametrize(
    "spec",
    [DeploySpec(strategy=STRATEGY), DeploySpec(strategy=AllAtOnce(), expected_requests_per_s=1)],
)
def test_without_traffic_or_steps_nothing_is_foreseen(spec: DeploySpec) -> None:
    assert foresee(spec) == ()
