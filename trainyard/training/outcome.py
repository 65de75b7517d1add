"""What a finished training leaves: the adapter or the whole model, and last the result."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from trainyard.data.template import Template
from trainyard.files import digest_tree, read_json, write_json, write_text
from trainyard.training import weights
from trainyard.training.job import ADAPTER, METRICS, RESULT, TrainJob, environment
from trainyard.training.journal import read_metrics
from trainyard.training.trainer import JobTrainer, rss_gib

CONFIGS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_adapter(
    model: Any,
    template: Template,
    job: TrainJob,
    folder: Path,
    whole: weights.Tensors | None = None,
) -> None:
    """Write `adapter/`: trained weights and the base's tokenizer, nothing of this machine in it.

    Of `method: full` the weights are the whole model, in the base's own type.
    """
    adapter, part = folder / ADAPTER, folder / f".{ADAPTER}"
    for old in (adapter, part):
        shutil.rmtree(old, ignore_errors=True)
    if job.spec.method == "full":
        known = read_json(job.base_model / "config.json")
        name = known.get("dtype") or known.get("torch_dtype") or "float32"
        if whole is None:
            model.to(getattr(torch, name))
        else:
            whole = {key: value.to(getattr(torch, name)) for key, value in whole.items()}
        model.config._name_or_path = job.base_ref
    weights.save(model, part, whole)
    (part / "README.md").unlink(missing_ok=True)
    if job.spec.method != "full":
        _settle(part / "adapter_config.json", job.base_ref)
    for name in CONFIGS:
        if (job.base_model / name).is_file():
            shutil.copyfile(job.base_model / name, part / name)
    if template.source is not None:
        write_text(part / "chat_template.jinja", template.source)
    os.sync()
    part.replace(adapter)


def _settle(file: Path, base_ref: str) -> None:
    """Make the same adapter the same bytes: PEFT writes the base's folder, and sets unordered."""
    config = read_json(file)
    config["base_model_name_or_path"] = base_ref
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_result(folder: Path, trainer: JobTrainer, backend: str, measured: dict[str, Any]) -> None:
    lines = read_metrics(folder / METRICS)
    tail = [line["loss"] for line in lines[-10:]]
    result = {
        "steps": trainer.state.global_step,
        "loss": sum(tail) / len(tail),
        "tokens": lines[-1]["tokens"],
        "seconds": lines[-1]["seconds"],
        "backend": backend,
        "digest": digest_tree(folder / ADAPTER),
        "details": measured
        | {
            "trained_parameters": sum(
                p.numel() for p in trainer.model.parameters() if p.requires_grad
            ),
            "rows": len(trainer.rows),
            "threads": torch.get_num_threads(),
            "peak_rss_gib": round(rss_gib(), 3),
            "environment": environment(),
        },
    }
    if torch.cuda.is_available():
        result["details"]["peak_gpu_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
    write_json(folder / RESULT, result)
