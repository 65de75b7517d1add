"""What a finished training leaves: the adapter, and last the result."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from trainyard.data.template import Template
from trainyard.files import digest_tree, read_json, write_json, write_text
from trainyard.training.job import ADAPTER, METRICS, RESULT, TrainJob, environment
from trainyard.training.journal import read_metrics
from trainyard.training.trainer import JobTrainer, rss_gib


def write_adapter(model: Any, template: Template, job: TrainJob, folder: Path) -> None:
    """Write `adapter/`: PEFT weights and the base's tokenizer, nothing of this machine in it."""
    adapter, part = folder / ADAPTER, folder / f".{ADAPTER}"
    for old in (adapter, part):
        shutil.rmtree(old, ignore_errors=True)
    model.save_pretrained(str(part), safe_serialization=True, selected_adapters=["default"])
    (part / "README.md").unlink(missing_ok=True)
    config = read_json(part / "adapter_config.json")
    config["base_model_name_or_path"] = job.base_ref
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    write_text(part / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (job.base_model / name).is_file():
            shutil.copyfile(job.base_model / name, part / name)
    if template.source is not None:
        write_text(part / "chat_template.jinja", template.source)
    os.sync()
    part.replace(adapter)


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
