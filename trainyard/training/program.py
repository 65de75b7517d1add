"""The program that both backends are: from job.json, by way of a watched trainer, to result.json.

A backend imports this file after its own library and passes a function that loads base model and
adapter. transformers, TRL and PEFT do the training.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from trainyard.data.template import Template
from trainyard.errors import InputError
from trainyard.files import read_json
from trainyard.training import job as contract
from trainyard.training import selfcheck
from trainyard.training.checkpoints import newest_complete, step_of
from trainyard.training.job import JobFile
from trainyard.training.journal import Journal
from trainyard.training.memory import MemoryEstimate, estimate
from trainyard.training.objectives import COLUMNS, TRAINERS, collator_of, config_of
from trainyard.training.outcome import write_adapter, write_result
from trainyard.training.plain import arithmetic
from trainyard.training.rows import read_rows
from trainyard.training.trainer import JobTrainer, NotFinite, Watch
from trainyard.training.validation import Validation

Load = Callable[[JobFile], tuple[Any, PreTrainedTokenizerBase]]
"""Loads the base of a job and puts a fresh adapter on it: (PEFT model, tokenizer)."""

OOM_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def main(load: Load, backend: str, argv: list[str]) -> int:
    """Run the job in the folder that `argv` names; return the exit code of the contract."""
    if len(argv) != 2 or not (Path(argv[1]) / contract.JOB).is_file():
        print(
            f"usage: python -m trainyard.training.{backend} FOLDER (with job.json)", file=sys.stderr
        )
        return contract.BAD_INPUT
    folder = Path(argv[1])
    journal = Journal(folder, writes=os.environ.get("RANK", "0") == "0")
    journal.beat("loading", force=True)
    stacks = (folder / "stacks.txt").open("a")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    try:
        return run(load, backend, folder, journal)
    except (InputError, selfcheck.Failed, NotFinite, RuntimeError, MemoryError) as error:
        kind = kind_of(error)
        if kind is None:
            raise
        lines = str(error).splitlines()
        journal.ended(kind, lines[0] if lines else "host memory ended")
        return contract.CODES[kind]


def kind_of(error: BaseException) -> str | None:
    """Return the contract's word for an error, None for one that it does not know."""
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, selfcheck.Failed):
        return "self-check"
    if isinstance(error, NotFinite):
        return "not finite"
    named = any(word in str(error) for word in OOM_WORDS)
    out = named or isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return "out of memory" if out else None


def run(load: Load, backend: str, folder: Path, journal: Journal) -> int:
    file = JobFile.model_validate(read_json(folder / contract.JOB))
    job, spec = file.job, file.job.spec
    quiet()
    require_device(file)
    torch.set_num_threads(spec.threads)
    set_seed(spec.seed)
    if not job.gpus:
        torch.use_deterministic_algorithms(True)
    template = Template.load(job.base_model, job.chat_template)
    rows = read_rows(job.train, template, spec.max_seq_len, spec.objective)
    journal.beat("loading", force=True)
    model, tokenizer = load(file)
    if not job.gpus:  # the CPU's fused attention is slow backwards: 40 % of a step of a small model
        model.set_attn_implementation("eager")
    keep_trainable_layout(model)
    require_positions(model, rows)
    if spec.continue_from:
        take_weights(model, contract.adapter_weights(spec.continue_from))
    checkpoint = newest_complete(folder / contract.CHECKPOINTS)
    before = journal.resume_at(step_of(checkpoint) if checkpoint else 0)
    validation = make_validation(file, folder, template, before)
    watch = Watch(journal, file, before, validation)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id_of(tokenizer, template))
    model.generation_config.eos_token_id = sorted(template.eos_token_ids)
    trainer = make_trainer(file, folder, model, tokenizer, rows)
    for callback in (validation, watch):  # in this order: watch logs what validation measures
        if callback is not None:
            callback.trainer = trainer
            trainer.add_callback(callback)
    trainer.batch_size = spec.batch_size
    trainer.journal = journal
    journal.beat("checking", force=True)
    checks = selfcheck.all_checks(trainer, file, template, rows)
    signal.signal(signal.SIGTERM, watch.request_stop)
    watch.begin = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watch.stop and trainer.state.global_step < trainer.state.max_steps:
        journal.ended("stopped", "SIGTERM: a checkpoint was written", trainer.state.global_step)
        return contract.STOPPED
    # every process has to take part in putting the pieces together
    whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) if file.sharded else None
    if trainer.is_world_process_zero():
        measured: dict[str, Any] = {"precision": arithmetic(file), "self_checks": checks}
        if "longest_step_gib" in checks:
            measured["estimated_gib"] = round(estimated(model, file, rows).total, 3)
        if validation is not None:
            validation.restore_best(trainer.model)
            measured |= validation.summary()
        write_adapter(trainer.model, template, job, folder, whole)
        write_result(folder, trainer, backend, measured)
    return 0


def estimated(model: Any, file: JobFile, rows: list[dict[str, Any]]) -> MemoryEstimate:
    """What the plan's formula says of the longest batch there is, which may be below the limit."""
    longest = max(len(row["input_ids"]) for row in rows)
    spec = file.job.spec
    return estimate(model.config.to_dict(), spec, rows=file.device_batch_size, tokens=longest)


def require_device(file: JobFile) -> None:
    """Raises InputError when the GPUs of the job are not there or lack what it asks of them."""
    job = file.job
    if not job.gpus:
        return
    if torch.cuda.device_count() < job.gpus:
        raise InputError(
            f"resources.gpus is {job.gpus} and torch {torch.__version__} finds "
            f"{torch.cuda.device_count()}: look at the driver and at torch's build"
        )
    if job.spec.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"{torch.cuda.get_device_name()} has no bfloat16 arithmetic: set precision: fp32"
        )


def make_validation(
    file: JobFile, folder: Path, template: Template, before: list[dict[str, Any]]
) -> Validation | None:
    spec = file.job.spec
    if not spec.eval_every:
        return None
    if file.job.val is None:
        raise InputError("eval_every needs validation rows, and the data leave none")
    rows = read_rows(file.job.val, template, spec.max_seq_len, spec.objective)
    validation = Validation(folder, rows, spec.eval_every, spec.patience)
    validation.resume(before)
    return validation


def quiet() -> None:
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def keep_trainable_layout(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on a CPU.

    After one forward pass in eval mode the repacked weight passes no gradient, without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def require_positions(model: Any, rows: list[dict[str, Any]]) -> None:
    """Raises InputError for a row that is longer than the base model was made for."""
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(rows, key=lambda row: len(row["input_ids"]))
    if limit is not None and len(longest["input_ids"]) > limit:
        raise InputError(
            f"row {longest['id']} has {len(longest['input_ids'])} tokens and the base model has "
            f"{limit} positions: set max_seq_len to {limit} or less"
        )


def take_weights(model: Any, file: Path) -> None:
    """Start from the adapter in `file`, which must have the same tensors."""
    here = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    found = load_file(file)
    there = {name: tensor.shape for name, tensor in found.items()}
    if here != there:
        differ = sorted(set(here.items()) ^ set(there.items()))
        name, shape = differ[0]
        raise InputError(
            f"continue_from: {file} has other tensors than this recipe trains, {name} "
            f"{list(shape)} for one: rank, target_modules and dora must be the same"
        )
    set_peft_model_state_dict(model, found)


def pad_id_of(tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """Return an id for padding that never ends a turn; it is masked, so any other id will do."""
    found = tokenizer.pad_token_id
    if found is not None and found not in template.eos_token_ids:
        return int(found)
    return next(
        i for i in range(len(template.eos_token_ids) + 1) if i not in template.eos_token_ids
    )


def make_trainer(
    file: JobFile,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
) -> JobTrainer:
    spec, common = file.job.spec, arguments(file, folder, len(rows))
    if spec.grpo:
        from trainyard.training import grpo  # noqa: PLC0415  (seconds, and only for grpo)

        trainer: JobTrainer = grpo.make(model, spec, tokenizer, rows, common)
    else:
        columns = COLUMNS[spec.objective]
        trainer = TRAINERS[spec.objective](
            model=model,
            args=config_of(spec, common),
            train_dataset=Dataset.from_dict({key: [r[key] for r in rows] for key in columns}),
            data_collator=collator_of(spec, tokenizer.pad_token_id, 8 if file.job.gpus else 1),
            processing_class=tokenizer,
        )
    # TRL stores the adapter of a 4-bit base in bfloat16, which cannot hold updates below 1/256
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.rows = rows
    return trainer


def arguments(file: JobFile, folder: Path, rows: int) -> dict[str, Any]:
    """What every objective's trainer is told."""
    spec = file.job.spec
    checkpointing = spec.activation_checkpointing != "none"
    return {
        "output_dir": str(folder / contract.CHECKPOINTS),
        "max_steps": spec.total_steps(rows),
        "per_device_train_batch_size": file.device_batch_size,
        "gradient_accumulation_steps": file.grad_accum_steps,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": SCHEDULERS[spec.scheduler],
        "warmup_steps": spec.warmup_steps,
        "optim": OPTIMIZERS[spec.optimizer],
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.max_grad_norm,
        "max_length": spec.max_seq_len,
        "remove_unused_columns": False,
        "gradient_checkpointing": checkpointing,
        "bf16": arithmetic(file) == "bf16",
        "fp16": False,
        "use_cpu": file.job.gpus == 0,
        "ddp_backend": None if file.job.world_size == 1 else "nccl" if file.job.gpus else "gloo",
        "ddp_find_unused_parameters": False,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": spec.save_every,
        "save_total_limit": 2,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": file.job.gpus > 0,
        "report_to": [],
        "disable_tqdm": True,
    }
