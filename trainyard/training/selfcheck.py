"""What must hold before time is spent on a training; a failed check names itself."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainyard.data.template import Template
from trainyard.training import probe, weights
from trainyard.training.job import JobFile
from trainyard.training.rows import IGNORED

TOLERANCE = 0.01
"""Relative difference allowed between two ways to compute the same number."""
LEAK = 1e-4
"""Relative change of a loss that must not change: the same operations on the same shapes."""
CHATS = ("sft", "preference", "kto")


class Failed(RuntimeError):
    """A self-check failed; its text says which one and with which values."""


def all_checks(
    trainer: Any, file: JobFile, template: Template, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Run every check; return what was measured. Weights, gradients and RNG stay as they were."""
    rows_are_trained(rows)
    found: dict[str, Any] = {"quantised_layers": quantised(trainer.model, file)}
    if file.job.spec.grpo:  # what it trains on is not there yet
        from trainyard.training import rewards  # noqa: PLC0415  (seconds, and only for grpo)

        found["rewards"] = rewards.check(file.job.spec.grpo.rewards, rows[:8])
        return found | {"saved_tensors": save_and_load(trainer.model)}
    turns_end(rows, template, trainer.data_collator)
    if file.sharded:  # gradients need the whole model on one device
        return found | {"saved_tensors": save_and_load(trainer.model)}
    with undisturbed(trainer.model):
        short = sorted(rows, key=lambda row: len(row["input_ids"]))[:8]
        batch = trainer.data_collator(short)
        if trainer.start_loss is not None:
            found["start_loss"] = starts_at_the_reference(trainer, batch)
        found["accumulation"] = accumulation(trainer, short)
        if file.job.spec.packing:
            found["packing"] = packing(trainer, short)
        if found["quantised_layers"] and trainer.args.device.type == "cpu":
            found["gradient_after_eval"] = gradient_after_eval(trainer, batch)
        found["longest_step_gib"] = probe.step(
            trainer, rows, probe.meter_of(trainer.args.device.type)
        )
    found["saved_tensors"] = save_and_load(trainer.model)
    return found


def rows_are_trained(rows: list[dict[str, Any]]) -> None:
    empty = [row["id"] for row in rows if all(label == IGNORED for label in row["labels"][1:])]
    if empty:
        raise Failed(
            f"trained tokens: {len(empty)} of {len(rows)} rows have none, first {empty[0]}"
        )


def turns_end(rows: list[dict[str, Any]], template: Template, collate: Any) -> None:
    """The end of a turn is trained in every chat row, and survives collation."""
    eos = set(template.eos_token_ids)
    chats = [row for row in rows if row["kind"] in CHATS]
    open_ended = [row["id"] for row in chats if _last_label(row) not in eos]
    if open_ended:
        raise Failed(
            f"end of turn: {len(open_ended)} of {len(chats)} chat rows do not train the token that "
            f"ends the answer ({sorted(eos)}), first {open_ended[0]}: the model would never stop"
        )
    for row in chats[:1]:
        longest = max(rows, key=lambda row: len(row["input_ids"]))
        batch = collate([row, longest])
        if "completion_mask" in batch:  # its first row is the chosen answer
            trained, wanted = batch["completion_mask"][0], [row]
        else:
            trained, wanted = batch["labels"][:, 1:] != IGNORED, [row, longest]
        labels = [label for one in wanted for label in one["labels"][1:]]
        if int(trained.sum()) != sum(label != IGNORED for label in labels):
            raise Failed("padding: the collator changed which tokens are trained")
        if collate.pad_token_id in eos:
            raise Failed(f"padding: token {collate.pad_token_id} pads and ends a turn")


def _last_label(row: dict[str, Any]) -> int:
    return next(label for label in reversed(row["labels"]) if label != IGNORED)


def starts_at_the_reference(trainer: Any, batch: dict[str, Any]) -> float:
    """Before the first step, the model that is trained is the one it is compared with."""
    with torch.no_grad():
        loss = float(trainer.loss_of(batch, trainer.units(batch)))
    if abs(loss - trainer.start_loss) > TOLERANCE * trainer.start_loss:
        raise Failed(
            f"reference: the loss is {loss:.4f} before the first step, {trainer.start_loss:.4f} if "
            "the reference were the model that training starts from"
        )
    return loss


def quantised(model: Any, file: JobFile) -> int:
    """Count the 4-bit layers: a library may fall back to 16 bits and only print a line."""
    kinds = (type(module) for module in model.modules())  # PEFT wraps them in a class so named
    count = sum(k.__name__ == "Linear4bit" and "bitsandbytes" in k.__module__ for k in kinds)
    if (file.job.spec.method == "qlora") != bool(count):
        raise Failed(f"quantisation: method {file.job.spec.method}, and {count} layers have 4 bits")
    return count


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Leave RNG, gradients and training mode as they were; dropout is off meanwhile."""
    state = torch.get_rng_state()
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    rates = [m.p for m in dropouts]
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
        model.zero_grad(set_to_none=True)
        model.train()
        torch.set_rng_state(state)


def gradient_norm(trainer: Any, batches: list[dict[str, Any]]) -> float:
    """Norm of the adapter's gradient, accumulated over `batches` as the trainer scales it."""
    units = sum(trainer.units(batch) for batch in batches)
    model = trainer.model
    model.train()
    model.zero_grad(set_to_none=True)
    for batch in batches:
        trainer.loss_of(batch, units).backward()
    squares = [float(p.grad.float().pow(2).sum()) for p in model.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


def accumulation(trainer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The gradient of a batch must not depend on how many pieces it is computed in."""
    half = math.ceil(len(rows) / 2)
    if half == len(rows):
        return {}
    collate = trainer.data_collator
    whole = gradient_norm(trainer, [collate(rows)])
    parts = gradient_norm(trainer, [collate(rows[:half]), collate(rows[half:])])
    if not (whole > 0 and math.isfinite(whole)):
        raise Failed(f"gradient: its norm is {whole}, nothing would be learned")
    if abs(whole - parts) > TOLERANCE * whole:
        raise Failed(
            f"accumulation: the gradient norm is {whole:.6g} in one piece and {parts:.6g} in two; "
            "these versions of the training libraries scale the loss wrongly together"
        )
    return {"one_piece": whole, "two_pieces": parts}


def packing(trainer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows that are packed together are trained as if each were alone."""
    rows = rows[:4]
    collate, model = trainer.data_collator, trainer.model
    units = trainer.units(collate(rows))
    attention = model.config._attn_implementation

    def loss(batch: dict[str, Any]) -> float:
        return float(trainer.loss_of(batch, units))

    with torch.no_grad():
        packed, alone = loss(collate(rows)), sum(loss(collate([row])) for row in rows)
        if not abs(packed - alone) <= TOLERANCE * alone:
            raise Failed(
                f"packing: the loss of {len(rows)} packed rows is {packed:.6g} and the sum of "
                f"their own is {alone:.6g} with {attention} attention: set packing: false"
            )
        size = len(rows[0]["input_ids"])
        batch = collate(rows)
        batch["labels"][0, :size] = IGNORED
        before = loss(dict(batch))
        batch["input_ids"][0, :size] = batch["input_ids"][0, :size].flip(0)
        after = loss(batch)
    if not abs(after - before) <= LEAK * before:
        raise Failed(
            f"packing: other tokens in one row change the loss of the rows after it from "
            f"{before:.6g} to {after:.6g} with {attention} attention: set packing: false"
        )
    return {"attention": attention, "packed": packed, "alone": alone}


def gradient_after_eval(trainer: Any, batch: dict[str, Any]) -> dict[str, float]:
    """An evaluation in between must not cut the gradient (bitsandbytes repacks weights on CPUs)."""
    before = gradient_norm(trainer, [batch])
    trainer.model.eval()
    ids = batch["input_ids"][:1].to(trainer.args.device)
    with torch.no_grad():
        trainer.model(input_ids=ids, use_cache=False)
    after = gradient_norm(trainer, [batch])
    if abs(before - after) > TOLERANCE * before:
        raise Failed(
            f"4-bit gradient: norm {before:.6g} before an evaluation and {after:.6g} after it; "
            "bitsandbytes has repacked the weights"
        )
    return {"before": before, "after": after}


def save_and_load(model: Any) -> int:
    """What is written to disk is what was in memory; return the number of tensors."""
    with tempfile.TemporaryDirectory() as folder:
        weights.save(model, Path(folder))
        saved = weights.read(Path(folder))
    if wrong := weights.not_in(model, saved):
        raise Failed(f"saving: {len(wrong)} of {len(saved)} tensors did not survive")
    return len(saved)
