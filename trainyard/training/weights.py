"""What a training changes, in memory and in a folder: an adapter's tensors, or a whole model's."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def trained(model: Any) -> Tensors:
    """Return the tensors under the names that `save` gives them; of shared ones, every name."""
    adapter = isinstance(model, PeftModel)
    return get_peft_model_state_dict(model) if adapter else model.state_dict()


def save(model: Any, folder: Path, whole: Tensors | None = None) -> None:
    """Write what was trained; `whole` is the model's state where each process has a part of it."""
    more: dict[str, Any] = {} if whole is None else {"state_dict": whole}
    if isinstance(model, PeftModel):
        more["selected_adapters"] = ["default"]
    model.save_pretrained(str(folder), safe_serialization=True, **more)


def read(folder: Path) -> Tensors:
    """Return what `save` wrote; of tensors that share memory, one."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def put(model: Any, tensors: Tensors) -> None:
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict(tensors, strict=False)  # shared tensors are there once


def not_in(model: Any, saved: Tensors) -> list[str]:
    """Name the tensors of the model that `saved` lacks, or has with another value."""
    here = trained(model)
    wrong = [
        name
        for name, tensor in saved.items()
        if name not in here or not torch.equal(here[name].cpu().float(), tensor.float())
    ]
    kept = {here[name].data_ptr() for name in saved if name in here}
    rest = (name for name in here if name not in saved)
    return wrong + [name for name in rest if here[name].data_ptr() not in kept]
