"""Merge an adapter into its 16-bit base and write one model; stdin: base, adapter, out, kind.

Of a version that is a whole model (`method: full`), that model.

Always from the base's own weights, never from a 4-bit copy: what NF4 has rounded away would be
merged in. `nf4` and `int8` quantise the merged model by bitsandbytes, `torchao-int8` by torchao;
torchao's 4 bits need a GPU and its mslk kernels, and are not offered.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from trainyard.training.plain import nf4

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


def load(folder: Path, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, local_files_only=True, **more
    )


def is_whole(version: Path) -> bool:
    return (version / "config.json").is_file()


def merge(base: Path, adapter: Path, out: Path) -> None:
    """Add the update in 32 bits and round once, to the base's own type."""
    if is_whole(adapter):
        load(adapter).save_pretrained(out, safe_serialization=True)
        return
    model = load(base)
    dtype = next(model.parameters()).dtype
    merged = PeftModel.from_pretrained(model.float(), adapter).merge_and_unload(safe_merge=True)
    merged.to(dtype).save_pretrained(out, safe_serialization=True)


def quantise(folder: Path, kind: str, out: Path) -> None:
    config: Any
    if kind == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415  (an extra)

        config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        config = BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else nf4(torch.bfloat16)
    where = {"": 0} if torch.cuda.is_available() else "cpu"
    model = load(folder, quantization_config=config, device_map=where)
    model.save_pretrained(out, safe_serialization=True)


def main() -> int:
    asked = json.load(sys.stdin)
    base, adapter, out = Path(asked["base"]), Path(asked["adapter"]), Path(asked["out"])
    if asked["kind"] == "merged":
        merge(base, adapter, out)
    else:
        with tempfile.TemporaryDirectory(dir=out.parent) as whole:
            merge(base, adapter, Path(whole))
            quantise(Path(whole), asked["kind"], out)
    for name in TOKENIZER:
        for folder in (adapter, base):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
                break
    print("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
