"""The Unsloth backend. Unsloth comes before TRL, transformers and PEFT, which it patches."""

from trainyard.training import lean  # isort: split

from unsloth import FastLanguageModel  # isort: split

import sys
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trainyard.training import program
from trainyard.training.job import JobFile
from trainyard.training.plain import arithmetic

CHECKPOINTING = {"none": False, "block": True, "offload": "unsloth"}


def load(file: JobFile) -> tuple[Any, PreTrainedTokenizerBase]:
    job, spec = file.job, file.job.spec
    checkpointing = CHECKPOINTING[spec.activation_checkpointing]
    base, tokenizer = FastLanguageModel.from_pretrained(
        str(job.base_model),
        max_seq_length=spec.max_seq_len,
        dtype=torch.bfloat16 if arithmetic(file) == "bf16" else torch.float32,
        load_in_4bit=spec.method == "qlora",
        load_in_16bit=spec.method == "lora",
        trust_remote_code=job.trust_remote_code,
        use_exact_model_name=True,
        use_gradient_checkpointing=checkpointing,
        random_state=spec.seed,
    )
    model = FastLanguageModel.get_peft_model(
        base,
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        target_modules=(
            spec.target_modules
            if isinstance(spec.target_modules, str)
            else list(spec.target_modules)
        ),
        use_gradient_checkpointing=checkpointing,
        random_state=spec.seed,
        max_seq_length=spec.max_seq_len,
    )
    return model, tokenizer


if __name__ == "__main__":
    lean.loaded()
    sys.exit(program.main(load, "unsloth", sys.argv))
