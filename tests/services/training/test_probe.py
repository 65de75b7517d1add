"""The meters of the memory probe see what a step takes."""

import sys

import pytest
import torch

from trainyard.training.probe import meter_of

torch.set_num_threads(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux begins a peak again")
def test_a_peak_begins_again_and_counts_what_was_freed():
    meter = meter_of("cpu")
    torch.ones(100_000_000)  # 0.37 GiB
    meter.reset()
    before = meter.peak_gib()
    torch.ones(50_000_000)
    assert meter.peak_gib() - before == pytest.approx(0.186, abs=0.03)
