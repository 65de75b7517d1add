import json

import pytest

from bench import vram
from trainyard.errors import InputError
from trainyard.recipe.train import TrainSpec
from trainyard.training.memory import estimate, fit, shape_of

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
}


def test_published_measurements_are_met(capsys):
    vram.main()
    last = capsys.readouterr().out.splitlines()[-1]
    found = json.loads(last)
    assert found["points"] == 24
    assert found["mean_abs_error"] <= 0.08
    assert found["worst_under"] <= 0.15


def test_sizes_are_those_of_the_published_models():
    # Llama 3.1 8B: 8.03 B parameters; its r16 all-linear adapter in Unsloth's guides: 41.9 M
    llama = shape_of(LLAMA_8B)
    assert llama.parameters == pytest.approx(8.03e9, rel=0.001)
    assert llama.adapter(16, "all-linear") == 41_943_040
    # Qwen3-30B-A3B: 30.5 B parameters, 3.3 B of them active
    qwen = shape_of(QWEN3_30B_A3B)
    assert qwen.parameters == pytest.approx(30.5e9, rel=0.01)
    assert qwen.active_linear + qwen.embeddings == pytest.approx(3.3e9, rel=0.03)


def test_attention_only_needs_a_smaller_adapter():
    shape = shape_of(LLAMA_8B)
    assert shape.adapter(16, ("q_proj", "v_proj")) == 32 * 16 * (4096 * 2 + 4096 + 1024)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("method", "qlora"),
        ("optimizer", "adamw_8bit"),
        ("activation_checkpointing", "block"),
        ("max_seq_len", 1024),
        ("device_batch_size", 2),
        ("rank", 8),
    ],
)
def test_each_saving_saves(setting, value):
    before = TrainSpec(method="lora")
    after = before.model_copy(update={setting: value})
    assert estimate(LLAMA_8B, after).total < estimate(LLAMA_8B, before).total


def test_what_fits_is_not_criticised_and_the_largest_micro_batch_is_named():
    found = fit(estimate(LLAMA_8B, TrainSpec(activation_checkpointing="block")), 23.6)
    assert (found.verdict, found.sentences) == ("fits", ())
    assert found.device_batch_size == 8


def test_the_cheapest_change_is_proposed():
    found = fit(estimate(LLAMA_8B, TrainSpec()), 23.6)
    assert found.verdict == "too large"
    assert found.sentences[1] == "set activation_checkpointing: block"


def test_a_smaller_micro_batch_is_proposed_before_anything_else():
    train = TrainSpec(activation_checkpointing="block", device_batch_size=16)
    assert fit(estimate(LLAMA_8B, train), 23.6).sentences[1] == "set device_batch_size: 8"


def test_a_shorter_length_is_proposed_only_if_the_data_allow_it():
    train = TrainSpec(
        backend="trl",
        optimizer="adamw_8bit",
        activation_checkpointing="block",
        max_seq_len=65536,
        device_batch_size=1,
    )
    need = estimate(LLAMA_8B, train)
    assert "no change" in fit(need, 23.6).sentences[1]
    assert fit(need, 23.6, p99_tokens=2000).sentences[1] == "set max_seq_len: 2000"


def test_a_model_that_can_never_fit_says_so():
    found = fit(estimate(LLAMA_8B, TrainSpec()), 4.0)
    assert found.device_batch_size is None
    assert "take a larger card" in found.sentences[1]


def test_a_config_without_sizes_is_refused_by_key():
    without = {key: value for key, value in LLAMA_8B.items() if key != "num_hidden_layers"}
    with pytest.raises(InputError, match="num_hidden_layers"):
        shape_of(without)
