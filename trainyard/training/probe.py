"""The memory that one step with the longest batch really takes, before the first step is made."""

import os
import resource
import sys
from pathlib import Path
from typing import Any, Protocol

import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
GIB = 2**30


class Meter(Protocol):
    def reset(self) -> None: ...
    def peak_gib(self) -> float:
        """Most memory since `reset`."""


class Cuda:
    def reset(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        return float(torch.cuda.max_memory_reserved()) / GIB


class Resident:
    """This process's memory. Only Linux can begin a peak again; elsewhere it is the peak so far."""

    def reset(self) -> None:
        if sys.platform == "linux" and os.access(RESET, os.W_OK):
            RESET.write_text("5", encoding="ascii")  # proc(5): the peak is what it is now

    def peak_gib(self) -> float:
        if not STATUS.is_file():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / (GIB if sys.platform == "darwin" else 2**20)
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def meter_of(device: str) -> Meter:
    return Cuda() if device == "cuda" else Resident()


def step(trainer: Any, rows: list[dict[str, Any]], meter: Meter) -> float:
    """Return the peak in GiB of a step with the longest rows; leaves weights and optimizer alone.

    Memory that ends does so here, within the first minute.
    """
    longest = sorted(rows, key=lambda row: -len(row["input_ids"]))
    batch = trainer.data_collator(longest[: trainer.args.per_device_train_batch_size])
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    kind, named = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    trainer.model.train()
    meter.reset()
    trainer.loss_of(batch, trainer.units(batch)).backward()
    kind(trained, **(named | {"lr": 0.0, "weight_decay": 0.0})).step()
    peak = meter.peak_gib()
    trainer.model.zero_grad(set_to_none=True)
    return round(peak, 3)
