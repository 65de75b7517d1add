import pytest
from pydantic import TypeAdapter

from trainyard.gate import Planned, Rules, foresee
from trainyard.recipe.gates import GateSpecs

read = TypeAdapter(GateSpecs).validate_python


def foreseen(claims, n, metrics, **more):
    (found,) = foresee(read(claims), {"s": Planned(n, metrics)}, **more)
    return found


@pytest.mark.parametrize(
    ("claims", "n", "metric", "needed"),
    [
        ({"harmful_rate": "<= 0.01"}, 120, "harmful", "needs 299 items, has 120"),
        ({"capability_drop": "<= 0.02"}, 100, "capability", "needs 149 items, has 100"),
        ({"p99_latency_ms": "<= 400"}, 100, "latency_ms", "needs 299 items, has 100"),
        ({"accuracy": ">= 0.9"}, 20, "accuracy", "needs 29 items, has 20"),
        ({"accuracy": ">= 1.0"}, 500, "accuracy", "no number of items"),
        ({"accuracy": ">= 0.9"}, 1, "accuracy", "prove nothing"),
        ({"rougeL": ">= 0.4"}, 100, "accuracy", "not a metric of any suite"),
    ],
)
def test_an_impossible_gate_says_what_it_would_take(claims, n, metric, needed):
    found = foreseen(claims, n, [metric])
    assert not found.can_pass
    assert needed in found.problem


@pytest.mark.parametrize(
    ("claims", "n", "metric", "seen"),
    [
        # exact n for 80 % power of the bound rule above 0.75: 0.80 with 437
        ({"win_rate": "> 0.75"}, 437, "win_rate", 0.80),
        ({"capability_drop": "<= 0.02"}, 1546, "capability", 0.0),
    ],
)
def test_the_smallest_visible_effect_is_that_of_eighty_percent_power(claims, n, metric, seen):
    found = foreseen(claims, n, [metric])
    assert found.can_pass
    assert found.min_detectable == pytest.approx(seen, abs=2e-3)


def test_a_gate_on_a_suite_that_does_not_run_is_named():
    found = foreseen([{"id": "a", "metric": "accuracy", "op": ">", "value": 0.5, "suite": "x"}],
                     100, ["accuracy"])  # fmt: skip
    assert "suite 'x' is not in evaluate (s)" in found.problem


def test_a_comparison_needs_the_other_arm():
    claim = [{"id": "c", "metric": "accuracy", "compare": "champion", "max_drop": 0.1}]
    base = [{**claim[0], "compare": "base"}]
    assert "no base" in foreseen(base, 1000, ["accuracy"], arms=("candidate",)).problem
    assert "no champion yet" in foreseen(claim, 1000, ["accuracy"]).assumed
    arms = ("candidate", "base", "champion")
    assert foreseen(claim, 1000, ["accuracy"], arms=arms).can_pass


@pytest.mark.parametrize(
    ("claim", "suite", "can", "problem"),
    [
        ({"metric": "human_issue_rate", "op": "<=", "value": 0.05, "sample": 59}, 100, True, None),
        ({"metric": "human_issue_rate", "op": "<=", "value": 0.05, "sample": 58}, 100, False,
         "needs 59 items, has 58"),
        ({"metric": "human_issue_rate", "op": "<=", "value": 0.05, "sample": 59}, 30, False,
         "suite s has 30 items"),
        ({"metric": "human_win_rate", "op": ">", "value": 0.5, "sample": 3, "opponent": "base"},
         30, False, "needs 5 items, has 3"),
        ({"metric": "human_win_rate", "op": ">", "value": 0.5, "sample": 30, "opponent": "base"},
         30, True, None),
    ],
)  # fmt: skip
def test_people_see_no_more_than_there_is(claim, suite, can, problem):
    found = foreseen([{"id": "g", "suite": "s", **claim}], suite, ["accuracy"])
    assert found.can_pass is can
    assert problem is None or problem in found.problem


def test_grades_are_planned_as_rates():
    assert not foreseen({"rubric_score": ">= 0.9"}, 20, ["rubric_score"]).can_pass
    assert foreseen({"rubric_score": ">= 0.9"}, 200, ["rubric_score"]).min_detectable > 0.9


def test_further_looks_count_for_whether_a_gate_can_pass():
    rules = Rules(looks={"s": 2})
    (found,) = foresee(
        read({"harmful_rate": "<= 0.01"}), {"s": Planned(200, ["harmful"], 400)}, rules=rules
    )
    assert (found.can_pass, found.n, found.most) == (True, 200, 400)
    (found,) = foresee(
        read({"harmful_rate": "<= 0.01"}), {"s": Planned(200, ["harmful"], 300)}, rules=rules
    )
    assert "needs 368 items, has 300" in found.problem  # at half of alpha
