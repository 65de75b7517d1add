import pytest
from pydantic import ValidationError

from trainyard.recipe.resources import GPU_GIB, ResourcesSpec
from trainyard.recipe.train import TrainSpec

GRPO = {"objective": "grpo", "grpo": {"rewards": ["exact_match"]}}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"batch_size": 10, "device_batch_size": 4},
            r"batch_size \(10\) must be a multiple of device_batch_size \(4\)",
        ),
        ({"backend": "command"}, "give both or neither"),
        ({"command": ("train.sh",)}, "give both or neither"),
        ({"backend": "trl", "activation_checkpointing": "offload"}, "needs backend: unsloth"),
        ({"dora": True}, "dora needs backend: trl, not auto"),
        ({"patience": 2}, r"patience \(2\)"),
        ({"dropout": 1.0}, "less than 1"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"learning_rte": 1e-4}, "not permitted"),
        ({"method": "full", "backend": "unsloth"}, "trained by backend: trl with objective: sft"),
        ({"method": "full", "objective": "dpo"}, "not by auto with dpo"),
        ({"method": "full", "continue_from": "x"}, "continue_from is about an adapter"),
        ({"packing": True, "objective": "dpo"}, "packing is proved equal for objective sft"),
        ({"objective": "grpo"}, "give both or neither"),
        ({"grpo": {"rewards": ["exact_match"]}}, "give both or neither"),
        (GRPO | {"batch_size": 12}, r"multiple of grpo.answers \(8\)"),
        (GRPO | {"eval_every": 5}, "those of grpo compare nothing"),
        (GRPO | {"grpo": {"rewards": []}}, "at least 1 item"),
        (GRPO | {"grpo": {"rewards": ["bleu"]}}, "reward 'bleu' is not known"),
        (GRPO | {"grpo": {"rewards": ["regex:("]}}, r"reward regex:\("),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, text):
    with pytest.raises(ValidationError, match=text):
        TrainSpec(**settings)


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "expected"),
    [
        (32, 1.0, None, 2),
        (33, 1.0, None, 3),  # the last batch of a pass is smaller
        (33, 2.5, None, 8),
        (33, 2.5, 5, 5),
        (1, 1.0, 100, 1),  # max_steps is a limit, not a target
    ],
)
def test_steps_follow_rows_passes_and_the_limit(rows, epochs, max_steps, expected):
    assert TrainSpec(epochs=epochs, max_steps=max_steps).total_steps(rows) == expected


def test_accumulation_makes_up_for_a_small_micro_batch():
    assert TrainSpec(batch_size=12, device_batch_size=3).grad_accum_steps == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gpus": 1, "gpu": "L4", "gpu_gib": 24}, "both say how much memory"),
        ({"gpu": "L4"}, "need gpus to be 1 or more"),
        ({"price_per_gpu_hour": 2}, "need gpus to be 1 or more"),
        ({"gpus": 1, "gpu": "H900"}, "H100"),
    ],
)
def test_contradicting_resources_are_refused(settings, text):
    with pytest.raises(ValidationError, match=text):
        ResourcesSpec(**settings)


def test_memory_comes_from_the_card_or_the_number():
    assert ResourcesSpec(gpus=1, gpu="L4").memory_gib == GPU_GIB["L4"]
    assert ResourcesSpec(gpus=1, gpu_gib=48).memory_gib == 48
    assert ResourcesSpec(gpus=1).memory_gib is None


def test_a_step_of_grpo_counts_answers():
    spec = TrainSpec(**GRPO, batch_size=16, epochs=2)
    assert spec.rows_per_step == 2
    assert spec.total_steps(9) == 8  # the ninth prompt fills no step
