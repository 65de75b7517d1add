import pytest
from pydantic import TypeAdapter, ValidationError

from trainyard.recipe.gates import GateSpecs

read = TypeAdapter(GateSpecs).validate_python
FULL = {"id": "accuracy", "metric": "accuracy", "op": ">=", "value": 0.85}


@pytest.mark.parametrize(
    "written",
    [
        {"accuracy": ">= 0.85"},
        {"accuracy": {"limit": ">= 0.85"}},
        ["accuracy >= 0.85"],
        [{"accuracy": ">=0.85"}],
        [{"metric": "accuracy", "limit": ">= 0.85"}],
        [FULL],
    ],
)
def test_all_notations_mean_the_same_gate(written):
    assert read(written) == read([FULL])


def test_severity_may_stand_beside_a_shorthand():
    (gate,) = read([{"accuracy": ">= 0.85", "severity": "warn"}])
    assert gate.severity == "warn"


def test_dataset_is_another_word_for_suite():
    (gate,) = read([{**FULL, "dataset": "t"}])
    assert gate.suite == "t"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({}, "at least one gate"),
        ({"accuracy": 0.85}, 'write it as ">= 0.85"'),
        ({"accuracy": "about 0.85"}, 'write it as ">= 0.85"'),
        (["accuracy"], "is not a claim"),
        ([FULL, FULL], "two gates have the id accuracy"),
        ([{**FULL, "op": None}], "has no limit"),
        ({"harmful_rate": ">= 0.01"}, "upper one"),
        ({"win_rate": "<= 0.5"}, "lower limit"),
        ({"win_rate": {"limit": "> 0.5", "decision": "point"}}, "weak evidence"),
        ({"harmful_rate": {"limit": "<= 0.01", "decision": "point"}}, "weak evidence"),
        ([{**FULL, "compare": "base"}], "instead of op and value"),
        ([{"id": "c", "metric": "capability", "compare": "base"}], "one of max_drop"),
        ([{**FULL, "max_drop": 0.1}], "need compare"),
        ([{**FULL, "opponent": "base"}], "read by win_rate and human_win_rate only"),
        ([{**FULL, "per_task_max_drop": 0.1}], "read by drop gates only"),
        ({"accuracy": ">= nan"}, "write it as"),
        ([{**FULL, "value": float("nan")}], "finite number"),
    ],
)
def test_a_claim_that_means_nothing_is_refused(written, says):
    with pytest.raises(ValidationError, match=says):
        read(written)
