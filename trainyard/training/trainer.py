"""What every TRL trainer here keeps: a job's order of rows, its journal and its checkpoints."""

import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from trainyard.training import selfcheck, weights
from trainyard.training.checkpoints import mark_complete
from trainyard.training.job import BEST, METRICS, JobFile
from trainyard.training.journal import Journal
from trainyard.training.order import order_of_epoch, rows_of_step
from trainyard.training.validation import Validation

JUMP = 1.0
"""How far, in nats, the first loss after an interruption may lie outside the last twenty."""


REWARDS = {
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
}
"""What TRL logs of an objective other than `sft`, under the names of `metrics.jsonl`."""


class NotFinite(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


class Order(Sampler[int]):
    """Rows in the order that `training.order` gives, pass by pass."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(order_of_epoch(self.rows, self.seed, self.epoch))

    def __len__(self) -> int:
        return self.rows


class JobTrainer(Trainer):
    """Mixed into a TRL trainer: keeps the job's order of rows and counts what it reads."""

    journal: Journal
    rows: list[dict[str, Any]]
    batch_size: int
    tokens = 0
    started_at: int | None = None
    start_loss: float | None = None
    """Loss before the first step where the objective fixes it, whatever the rows."""

    answers = 1
    """Sequences of a batch that belong to one row: the first ones of each, then the second."""

    def units(self, batch: dict[str, Any]) -> int:
        """What the loss of a batch is a mean over: rows here, trained tokens in SFT."""
        return int(batch["input_ids"].shape[0]) // self.answers

    def loss_of(self, batch: dict[str, Any], units: int) -> torch.Tensor:
        """The part of a step's loss that `batch` is, when the whole step has `units`."""
        inputs = {key: value.to(self.args.device) for key, value in batch.items()}
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss: torch.Tensor = self.compute_loss(self.model, inputs)
        return loss * self.units(batch) / units

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return Order(len(train_dataset or self.train_dataset), self.args.seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """With a reference adapter there, transformers 5.17 loads it and not the trained one."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # nobody has the whole tensors
            return
        saved = weights.read(Path(resume_from_checkpoint))
        weights.put(self.model, saved)
        if wrong := weights.not_in(self.model, saved):
            raise selfcheck.Failed(f"continuity: {wrong[0]} is not what the checkpoint holds")

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        if self.started_at is None:
            self.started_at = self.state.global_step
            self._prove_order(inputs)
        self.tokens += self.tokens_in(inputs)
        loss = super().training_step(model, inputs, *more, **named)
        self.journal.beat("training", self.state.global_step)
        return loss

    def tokens_in(self, inputs: dict[str, Any]) -> int:
        mask = inputs.get("attention_mask")
        return int(inputs["input_ids"].numel() if mask is None else mask.sum())

    def _prove_order(self, inputs: dict[str, Any]) -> None:
        """The first rows of an attempt are those that the order gives for its step."""
        step = self.state.global_step
        rows = rows_of_step(len(self.rows), self.batch_size, self.args.seed, step)
        mine = rows[self.args.process_index * self.args.per_device_train_batch_size :]
        given = rows_in(inputs)
        for row, ids in zip(mine, given[: len(given) // self.answers], strict=False):
            if ids != self.rows[row]["input_ids"]:
                raise selfcheck.Failed(
                    f"data order: step {step + 1} should train row {self.rows[row]['id']}, and the "
                    "loader gave another: the run cannot be continued"
                )


def rows_in(batch: dict[str, Any]) -> list[list[int]]:
    """Token ids of each row of a batch, padded or packed."""
    ids = batch["input_ids"].tolist()
    if "attention_mask" in batch:
        lengths = batch["attention_mask"].sum(1).tolist()
        return [row[:n] for row, n in zip(ids, lengths, strict=True)]
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    return [ids[0][a:b] for a, b in pairwise([*starts, len(ids[0])])]


class Watch(TrainerCallback):
    """Metrics per step, whole checkpoints, stop on SIGTERM or on a loss that is not finite."""

    def __init__(
        self,
        journal: Journal,
        file: JobFile,
        before: list[dict[str, Any]],
        validation: Validation | None,
    ) -> None:
        self.journal = journal
        self.file = file
        self.before = before
        self.tokens_before = int(before[-1]["tokens"]) if before else 0
        self.seconds_before = float(before[-1]["seconds"]) if before else 0.0
        self.validation = validation
        self.begin = time.monotonic()
        self.last = (self.begin, 0)
        self.stop = False
        self.trainer: JobTrainer

    def request_stop(self, *_: Any) -> None:
        self.stop = True

    def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # the signal reaches the processes at different steps
            self.stop = bool(summed(self.stop))
        if self.stop:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(f"step {state.global_step}: loss {loss}, gradient norm {norm}")
        if self.last == (self.begin, 0):
            self._prove_continuity(state.global_step, loss, float(logs["learning_rate"]))
        now, tokens = time.monotonic(), summed(self.trainer.tokens)
        elapsed = max(now - self.last[0], 1e-9)
        line = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "epoch": round(state.epoch, 4),
            "loss": loss,
            "lr": float(logs["learning_rate"]),
            "grad_norm": norm,
            "tokens": self.tokens_before + tokens,
            "tokens_per_s": round((tokens - self.last[1]) / elapsed, 1),
            "seconds": round(self.seconds_before + now - self.begin, 3),
            "rss_gib": round(rss_gib(), 3),
        }
        if self.validation and state.global_step in self.validation.losses:
            line["val_loss"] = self.validation.losses[state.global_step]
            if not math.isfinite(line["val_loss"]):
                raise NotFinite(f"step {state.global_step}: validation loss {line['val_loss']}")
        for name, key in REWARDS.items():
            if key in logs:
                line[name] = float(logs[key])
        if torch.cuda.is_available():
            line["gpu_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        self.last = (now, tokens)
        self.journal.step(line)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.journal.beat("saving", state.global_step, force=True)
        if args.world_size > 1:  # each process has written its own random state
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._complete(checkpoint)
            mark_complete(checkpoint, state.global_step, self.file.identity)

    def _complete(self, checkpoint: Path) -> None:
        """Add what a continuation in another folder needs."""
        shutil.copyfile(self.journal.folder / METRICS, checkpoint / METRICS)
        if self.validation is not None and self.validation.folder.is_dir():
            shutil.copytree(self.validation.folder, checkpoint / BEST)

    def _prove_continuity(self, step: int, loss: float, rate: float) -> None:
        """The first step of an attempt follows the last of the one before."""
        wanted = self.trainer.args.learning_rate * self.trainer.lr_scheduler.lr_lambdas[0](step - 1)
        if not math.isclose(rate, wanted, rel_tol=1e-6, abs_tol=1e-12):
            raise selfcheck.Failed(f"continuity: learning rate {rate} at step {step}, not {wanted}")
        recent = [line["loss"] for line in self.before[-20:]]
        if recent and not min(recent) - JUMP <= loss <= max(recent) + JUMP:
            raise selfcheck.Failed(
                f"continuity: the loss is {loss:.3f} at step {step} and was between "
                f"{min(recent):.3f} and {max(recent):.3f} before the interruption"
            )


def summed(value: float) -> int:
    """Sum over the processes of this training."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return int(value)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(total)
    return int(total)


def rss_gib() -> float:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
