import pytest

from trainyard.recipe.resources import ResourcesSpec
from trainyard.recipe.train import TrainSpec
from trainyard.training.budget import budget
from trainyard.training.memory import Shape

QWEN_7B = Shape(4096, 32, 11008, 11008, 4096, 4096, 151936, tied=False)


@pytest.mark.parametrize(
    ("tokens", "measured_s"),
    [(256, 3.0), (512, 3.0), (1024, 3.5), (2048, 7.0), (4096, 11.6), (8192, 22.3)],
)
def test_step_times_published_for_qwen_are_met_within_a_quarter(tokens, measured_s):
    train = TrainSpec(rank=64, batch_size=8, device_batch_size=1, activation_checkpointing="block")
    one_step = budget(
        QWEN_7B, train, ResourcesSpec(gpus=1, gpu="A100-80"), rows=8, mean_tokens=tokens
    )
    assert one_step.hours * 3600 == pytest.approx(measured_s, rel=0.25)


def test_gpus_of_all_nodes_divide_the_work_and_multiply_the_hours():
    train = TrainSpec(batch_size=64, device_batch_size=1)
    one, many = (
        budget(
            QWEN_7B,
            train,
            ResourcesSpec(gpus=gpus, nodes=nodes, gpu="H100", price_per_gpu_hour=3.0),
            rows=1000,
            mean_tokens=500,
        )
        for gpus, nodes in ((1, 1), (4, 2))
    )
    assert many.hours == pytest.approx(one.hours / 8)
    assert many.gpu_hours == pytest.approx(8 * many.hours)
    assert many.cost == pytest.approx(3.0 * many.gpu_hours)


def test_cost_follows_price_and_is_absent_without_one():
    train = TrainSpec(epochs=2)
    card = ResourcesSpec(gpus=1, gpu="H100", price_per_gpu_hour=3.0)
    found = budget(QWEN_7B, train, card, rows=1000, mean_tokens=500)
    assert found.cost == pytest.approx(3.0 * found.gpu_hours)
    assert found.steps == 126
    free = budget(QWEN_7B, train, ResourcesSpec(), rows=1000, mean_tokens=500)
    assert (free.cost, free.gpu_hours) == (None, 0)
