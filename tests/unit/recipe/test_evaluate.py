from pathlib import Path

import pytest

from trainyard.errors import InputError
from trainyard.recipe import read_recipe
from trainyard.release import engine

TGI = Path("recipes/tickets-8b-tgi.yaml")
QUICK = Path("recipes/quickstart.yaml")
CORPUS = {"name": "corpus", "kind": "perplexity", "data": "recipes/quickstart/corpus.jsonl"}
SUM = {"name": "s", "kind": "harness", "harness": "lm_eval", "tasks": ["x"], "metric": "m"}


def test_perplexity_on_an_engine_without_prompt_log_probabilities_is_refused_at_plan_time():
    engine.check(read_recipe(TGI))
    asks = read_recipe(TGI, {"evaluate.suites": [CORPUS], "gates": {"perplexity": "<= 9"}})
    with pytest.raises(InputError, match=r"engine tgi does not give .*: use vllm"):
        engine.check(asks)
    engine.check(
        read_recipe(
            TGI,
            {"evaluate.suites": [CORPUS], "gates": {"perplexity": "<= 9"},
             "evaluate.generation": "offline"},
        )
    )  # fmt: skip


def test_a_harness_that_is_not_installed_is_refused_at_plan_time():
    asks = read_recipe(
        QUICK,
        {"evaluate.suites": [{**SUM, "limit": 300}], "gates": {"capability": ">= 0.5"}},
    )
    with pytest.raises(InputError, match=r"type: .* -m pip install 'lm-eval"):
        engine.check(asks)


def test_a_merged_model_that_is_none_is_refused_at_plan_time(tmp_path):
    asks = read_recipe(QUICK, {"evaluate.parity.merged": str(tmp_path)})
    with pytest.raises(InputError, match=r"has no config.json; name a whole model"):
        engine.check(asks)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"evaluate.generation": "offline"}, "latency_ms is that of a served answer"),
        ({"evaluate.suites": [SUM], "gates": {"capability": ">= 0.5"}}, "needs limit"),
        ({"evaluate.suites": [{**SUM, "limit": 5}], "evaluate.generation": "offline",
          "gates": {"capability": ">= 0.5"}}, "asks the endpoint"),
        ({"evaluate.parity": {"probes": 0}}, "greater than 0"),
        ({"gates": {"parity": "off"}}, "parity"),
        ({"gates": {"parity": {"severity": "warn", "slice": "a=b"}}}, "block` or `warn`"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_the_recipe(change, says):
    with pytest.raises(InputError, match=says):
        read_recipe(QUICK, change)


def test_the_parity_gate_is_there_without_being_written():
    gates = {gate.id: gate for gate in read_recipe(QUICK).gates}
    assert gates["parity"].severity == "block"
    warned = read_recipe(QUICK, {"gates": {"parity": "warn", "exact_match": ">= 0.9"}})
    assert [(gate.id, gate.severity) for gate in warned.gates] == [
        ("parity", "warn"),
        ("exact_match", "block"),
    ]
    again = type(warned).model_validate_json(warned.model_dump_json())  # as a flow's parameter
    assert again == warned
