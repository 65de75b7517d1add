"""The plain backend: transformers, PEFT and bitsandbytes, trained by TRL."""

import os
import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    Trainer,
)

from trainyard.training import sft
from trainyard.training.job import JobFile
from trainyard.training.trainer import JobTrainer


class PlainTrainer(JobTrainer):
    """TRL computes its loss in a Triton kernel, which no CPU runs: there the model computes it."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, *more, **named)
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, *more, **named)


def load(file: JobFile) -> tuple[Any, PreTrainedTokenizerBase]:
    job, spec = file.job, file.job.spec
    dtype = torch.bfloat16 if sft.arithmetic(file) == "bf16" else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    base = AutoModelForCausalLM.from_pretrained(
        job.base_model,
        dtype=dtype,
        device_map={"": int(os.environ.get("LOCAL_RANK", "0"))} if job.gpus else "cpu",
        quantization_config=quantization if spec.method == "qlora" else None,
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
        local_files_only=True,
    )
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
    tokenizer = AutoTokenizer.from_pretrained(
        job.base_model, trust_remote_code=job.trust_remote_code, local_files_only=True
    )
    return get_peft_model(base, adapter), tokenizer


if __name__ == "__main__":
    sys.exit(sft.main(load, "trl", sys.argv, PlainTrainer))
