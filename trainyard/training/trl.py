"""The plain backend: transformers, PEFT and bitsandbytes, trained by TRL."""

from trainyard.training import lean  # isort: split

import sys
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainyard.training import program
from trainyard.training.job import JobFile
from trainyard.training.objectives import compute_without_triton
from trainyard.training.plain import load_model


def load(file: JobFile) -> tuple[Any, PreTrainedTokenizerBase]:
    job = file.job
    if not job.gpus:
        compute_without_triton()
    model = load_model(file)
    tokenizer = AutoTokenizer.from_pretrained(
        job.base_model, trust_remote_code=job.trust_remote_code, local_files_only=True
    )
    return model, tokenizer


if __name__ == "__main__":
    lean.loaded()
    sys.exit(program.main(load, "trl", sys.argv))
