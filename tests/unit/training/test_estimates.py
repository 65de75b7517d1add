import pytest

from trainyard.recipe.resources import ResourcesSpec
from trainyard.recipe.train import TrainSpec
from trainyard.training import estimates
from trainyard.training.estimates import correction, keep, kind_of

KIND = "H100/trl/qlora/sft/none"


@pytest.mark.parametrize(
    ("ratios", "factor"),
    [
        ([], 1.0),
        ([1.2], 1.2),  # to need more is believed at once
        ([0.9, 0.9], 1.0),  # to need less is not
        ([0.9, 0.9, 0.9], 0.9),
        ([1.1, 1.1, 9.0], 1.1),  # one odd machine
        ([4.0], estimates.MOST),
        ([0.1] * 5, estimates.LEAST),
        ([2.0] * 3 + [1.3] * estimates.LATEST, 1.3),  # the latest count
    ],
)
def test_the_next_estimate_is_corrected_by_what_was_measured(ratios, factor, tmp_path):
    keep(tmp_path, "cpu/trl/lora/sft/none", 1.0, 1.4)
    for ratio in ratios:
        keep(tmp_path, KIND, 10.0, 10.0 * ratio)
    found = correction(tmp_path, KIND)
    assert found.ratio == pytest.approx(factor)
    assert found.pairs == min(len(ratios), estimates.LATEST)


def test_damaged_lines_are_left_out(tmp_path):
    keep(tmp_path, KIND, 10.0, 12.0)
    with (tmp_path / estimates.FILE).open("a") as file:
        file.write('{"kind": 1}\n[]\nnull\n{"kind": "' + KIND + '", "estimated_gib": 0, "measu')
    assert correction(tmp_path, KIND) == (1.2, 1)


def test_what_moves_the_memory_is_a_kind_of_its_own():
    spec, card = TrainSpec(), ResourcesSpec(gpus=1, gpu="H100")
    kinds = {
        kind_of(spec, card, "trl"),
        kind_of(spec, card, "unsloth"),
        kind_of(spec, ResourcesSpec(), "trl"),
        kind_of(spec, ResourcesSpec(gpus=1, gpu_gib=48), "trl"),
        kind_of(TrainSpec(packing=True), card, "trl"),
        kind_of(TrainSpec(method="full"), card, "trl"),
    }
    assert len(kinds) == 6
    assert kind_of(spec, card, "trl") == KIND
