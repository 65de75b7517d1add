"""LoRA adapters with random weights, in PEFT's format, without torch."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BASE = Path("recipes/quickstart/base")


def _linears(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Path of every linear layer of a llama -> (in, out) features."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    key_value = config["num_key_value_heads"] * config["head_dim"]
    one = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{i}.{name}": size for i in layers for name, size in one.items()}


def write_adapter(
    folder: Path, *, seed: int, rank: int = 8, base: Path = BASE, narrower: int = 0
) -> Path:
    """Both factors are random and not zero. `narrower`: features missing at the input."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for path, (inputs, outputs) in _linears(json.loads((base / "config.json").read_text())).items():
        down = random.normal(0, inputs**-0.5, (rank, inputs - narrower))
        up = random.normal(0, 0.3 * rank**-0.5, (outputs, rank))
        tensors[f"base_model.model.{path}.lora_A.weight"] = down.astype(np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = up.astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.1,
        "target_modules": names,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def with_own_tokenizer(folder: Path, template: str, base: Path = BASE) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / name)
    (folder / "chat_template.jinja").write_text(template)
    return folder
