"""The adapter in a process that loads it as the trainer does.

Reads one JSON object from stdin: `job` (path of the training's job.json), `adapter` (folder),
`merged` (folder or null), `threads` and `probes` (`prompt` and `answer` as token ids). Writes one
to stdout: for `adapter`, `precision` and `merge` the log-probabilities of the answers' tokens,
whether each was the first choice, and its lead over the second; `trainer` likewise, and `scales`:
the layers whose exported adapter has another scale.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from trainyard.lean import leave_out

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
leave_out("sklearn", "torchao")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from trainyard.files import read_json  # noqa: E402
from trainyard.training import weights  # noqa: E402
from trainyard.training.job import JobFile  # noqa: E402
from trainyard.training.plain import arithmetic, load_model  # noqa: E402

Read = dict[str, list[list[float]]]


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Score the probes with every model; one model is in memory at a time."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(asked["threads"])
    file = _without_missing_gpus(JobFile.model_validate(read_json(Path(asked["job"]))))
    adapter, probes = Path(asked["adapter"]), asked["probes"]
    found = _as_trained(file, adapter, probes)
    gc.collect()
    if file.job.spec.method == "full":
        model = _load(adapter, file)
    else:
        base = _load(file.job.base_model, file)
        model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False)
        del base
    found["precision"] = scores(model, probes)
    if asked["merged"]:
        del model
        gc.collect()
        found["merge"] = scores(_load(Path(asked["merged"]), file), probes)
    return found


def _as_trained(file: JobFile, adapter: Path, probes: list[dict[str, Any]]) -> dict[str, Any]:
    """The trained weights under the recipe's rank and scale, then the folder as PEFT reads it."""
    model = load_model(file)
    weights.put(model, weights.read(adapter))
    for parameter in model.parameters():
        if parameter.requires_grad:  # as the trainer keeps them
            parameter.data = parameter.data.float()
    with torch.autocast(_device(file), torch.bfloat16, enabled=arithmetic(file) == "bf16"):
        trainer = scores(model, probes)
        if file.job.spec.method == "full":
            del model
            gc.collect()
            whole = _load(adapter, file).float()
            return {"trainer": trainer, "adapter": scores(whole, probes), "scales": []}
        model.load_adapter(adapter, adapter_name="exported")
        model.set_adapter("exported")
        return {
            "trainer": trainer,
            "adapter": scores(model, probes),
            "scales": other_scales(model),
        }


def other_scales(model: Any) -> list[tuple[str, float, float | None]]:
    """Layers whose exported adapter has another scale than the trained one, or none at all."""
    found = []
    for name, layer in model.named_modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict) and "default" in scaling:
            exported = scaling.get("exported")
            if exported != scaling["default"]:
                found.append((name, scaling["default"], exported))
    return found


def _load(folder: Path, file: JobFile) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_dtype(folder, file),
        device_map={"": 0} if file.job.gpus else "cpu",
        trust_remote_code=file.job.trust_remote_code,
        use_safetensors=True,
        local_files_only=True,
    )


def _dtype(folder: Path, file: JobFile) -> Any:
    """On a GPU what the weights are in, as engines have it; on a CPU what our server chooses."""
    if file.job.gpus:
        return "auto"
    from trainyard.serving.server_model import choose_dtype  # noqa: PLC0415  (CPUs only)

    return choose_dtype("auto", folder)


def _device(file: JobFile) -> str:
    return "cuda" if file.job.gpus else "cpu"


def _without_missing_gpus(file: JobFile) -> JobFile:
    if not file.job.gpus or torch.cuda.is_available():
        return file
    return file.model_copy(update={"job": file.job.model_copy(update={"gpus": 0})})


@torch.no_grad()
def scores(model: Any, probes: list[dict[str, Any]]) -> Read:
    """Per probe and answer token: `logprobs` in nats, `first` (1 or 0), `lead` in nats."""
    model.eval()
    found: Read = {"logprobs": [], "first": [], "lead": []}
    device = next(model.parameters()).device
    for probe in probes:
        prompt, given = probe["prompt"], probe["answer"]
        ids = torch.tensor([prompt + given], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.float().log_softmax(-1)
        chosen = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
        best = logprobs.topk(2, dim=-1).values
        found["logprobs"].append(chosen.tolist())
        found["first"].append((chosen >= best[:, 0]).float().tolist())
        found["lead"].append((chosen - best[:, 1]).tolist())
    return found


def main() -> int:
    asked = json.load(sys.stdin)
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    json.dump(answer(asked), out)
    out.flush()
    os._exit(0)  # nothing is left to save, and taking torch down in order costs a second


if __name__ == "__main__":
    sys.exit(main())
