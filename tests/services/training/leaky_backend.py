"""The TRL backend with a packer that forgets to begin positions again for each row."""

import sys

import torch

from trainyard.training import objectives, program
from trainyard.training.trl import load

HONEST = objectives.Pack.__call__


def leaky(self, rows):
    batch = HONEST(self, rows)
    return batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


if __name__ == "__main__":
    objectives.Pack.__call__ = leaky
    sys.exit(program.main(load, "trl", sys.argv))
