"""A base model as the plain backend trains it, with an adapter or whole: transformers and PEFT.

Apart from the trainer, so that a parity check can load what was trained exactly like this.
"""

import os
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trainyard.training.job import JobFile


def load_model(file: JobFile) -> Any:
    """Return the PEFT model; rank, scale and layers are the recipe's. `full`: the base itself."""
    job, spec = file.job, file.job.spec
    narrow = arithmetic(file) == "bf16" and spec.method != "full" and not file.sharded
    dtype = torch.bfloat16 if narrow else torch.float32
    base = AutoModelForCausalLM.from_pretrained(
        job.base_model,
        dtype=dtype,
        device_map=_place(file),
        quantization_config=nf4(dtype) if spec.method == "qlora" else None,
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
        local_files_only=True,
    )
    if spec.method == "full":
        return base
    adapter = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        target_modules=(
            spec.target_modules
            if isinstance(spec.target_modules, str)
            else list(spec.target_modules)
        ),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(spec.seed)
    return get_peft_model(base, adapter)


def _place(file: JobFile) -> Any:
    if not file.job.gpus or file.sharded:  # accelerate gives each process its part
        return "cpu"
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's 4 bits (Dettmers et al. 2023): NF4, double quantisation, arithmetic in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def arithmetic(file: JobFile) -> str:
    """`bf16`, or `fp32` where the recipe says so or this CPU has no bfloat16 instructions."""
    native = file.job.gpus > 0 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return file.job.spec.precision if native else "fp32"
