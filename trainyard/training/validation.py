"""The loss over held-out rows while training: which adapter to keep, and when to stop."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trainyard.training import weights
from trainyard.training.job import BEST


class Validation(TrainerCallback):
    """Measures every `every` steps; the adapter of the lowest loss is in `best/step-N`."""

    trainer: Any

    def __init__(
        self, folder: Path, rows: list[dict[str, Any]], every: int, patience: int | None
    ) -> None:
        self.folder = folder / BEST
        self.rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        self.every = every
        self.patience = patience
        self.losses: dict[int, float] = {}
        self.early = False

    def resume(self, lines: list[dict[str, Any]]) -> None:
        """Take up what earlier attempts measured."""
        self.losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}

    @property
    def best_step(self) -> int:
        return min(self.losses, key=lambda step: (self.losses[step], step))

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self.every and step != state.max_steps:
            return
        self.losses[step] = self.measure()
        if self.best_step == step and state.is_world_process_zero:
            best = self.folder / f"step-{step}"
            weights.save(self.trainer.model, best)
        later = sum(1 for other in self.losses if other > self.best_step)
        if self.patience is not None and later >= self.patience:
            self.early = control.should_training_stop = True

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Delete what no continuation can want back: the checkpoint knows the best so far."""
        if state.is_world_process_zero and self.losses:
            for old in self.folder.glob("step-*"):
                if old.name != f"step-{self.best_step}":
                    shutil.rmtree(old)

    def measure(self) -> float:
        """Mean loss of the held-out rows: per trained token in SFT, in nats, else per row."""
        trainer, total, units = self.trainer, 0.0, 0
        size = trainer.args.per_device_train_batch_size
        trainer.model.eval()
        for start in range(0, len(self.rows), size):
            batch = trainer.data_collator(self.rows[start : start + size])
            here = trainer.units(batch)
            with torch.no_grad():
                total += float(trainer.loss_of(batch, here)) * here
            units += here
            trainer.journal.beat("training", trainer.state.global_step)
        trainer.model.train()
        return total / units if units else math.nan

    def summary(self) -> dict[str, Any]:
        return {
            "best_step": self.best_step,
            "val_loss": self.losses[self.best_step],
            "stopped_early": self.early,
        }

    def restore_best(self, model: Any) -> None:
        """Put the adapter of the lowest loss back into the model."""
        weights.put(model, weights.read(self.folder / f"step-{self.best_step}"))
