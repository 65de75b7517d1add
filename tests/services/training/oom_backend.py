"""The TRL backend on a device that holds two rows: a third raises torch's own exception."""

import sys

import torch

from trainyard.training import program
from trainyard.training.objectives import TRAINERS, Sft
from trainyard.training.trl import load


class SmallDevice(Sft):
    def training_step(self, model, inputs, *more, **named):
        if self.state.global_step == 4 and inputs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(model, inputs, *more, **named)


if __name__ == "__main__":
    TRAINERS["sft"] = SmallDevice
    sys.exit(program.main(load, "trl", sys.argv))
