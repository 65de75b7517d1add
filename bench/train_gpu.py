"""Unsloth QLoRA beside plain TRL and bitsandbytes, on random weights of real shapes. Needs a GPU.

    python -m bench.train_gpu [--sizes 1b 8b] [--lengths 512 1024 2048 4096] [--steps 8]

Speed does not depend on what the weights are, so none are downloaded. Both backends train the same
rows in the same order; `tokens_per_s` leaves out the first steps, in which Unsloth compiles. MFU
counts the model's own operations, 4 per frozen weight and token, and nothing that is computed again
for checkpointing.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainyard.base_model import resolve
from trainyard.errors import TrainyardError
from trainyard.files import read_json, write_json
from trainyard.recipe.resources import Card
from trainyard.recipe.train import TrainSpec
from trainyard.training.budget import PEAK_TFLOPS
from trainyard.training.job import TrainJob
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch
from trainyard.training.memory import Shape, shape_of

TOKENIZER = Path("recipes/quickstart/base")
WARM_UP = 3
"""Steps that are not timed."""
BACKENDS = ("unsloth", "trl")
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256}
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Llama 3.2 1B and Llama 3.1 8B, by their own config.json."""

INIT = """
import sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
with torch.device(sys.argv[2]):
    config = AutoConfig.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1], safe_serialization=True)
"""


class Point(NamedTuple):
    size: str
    backend: str
    tokens: int
    """Of each row."""
    tokens_per_s: float
    peak_memory_gib: float
    estimated_gib: float
    mfu: float
    cpu_s: float


def card_of(name: str) -> Card | None:
    """Return the card whose name stands in torch's: `NVIDIA H100 80GB HBM3` is an H100."""
    words = name.upper().replace("-", " ").split()
    size = "40" if any(word.startswith("40GB") for word in words) else "80"
    named = {card: card.partition("-")[0] for card in PEAK_TFLOPS}
    found = [card for card, short in named.items() if short in words]
    return next((c for c in found if c.endswith(size)), found[0] if found else None)


def mfu(shape: Shape, tokens_per_s: float, card: Card) -> float:
    weights = shape.active_linear + shape.vocabulary * shape.hidden
    return 4.0 * weights * tokens_per_s / (PEAK_TFLOPS[card] * 1e12)


def write_base(folder: Path, sizes: dict[str, Any], device: str) -> None:
    """Write a model of these sizes with random weights, and the quickstart's tokenizer."""
    shutil.copytree(
        TOKENIZER, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    known = read_json(TOKENIZER / "config.json")
    ends = {key: known[key] for key in ("bos_token_id", "eos_token_id") if key in known}
    write_json(folder / "config.json", LLAMA | ends | {"max_position_embeddings": 131072} | sizes)
    subprocess.run([sys.executable, "-c", INIT, str(folder), device], check=True)


def write_rows(file: Path, count: int, tokens: int) -> None:
    """Write rows of a little less than `tokens` tokens, each different."""
    with file.open("w", encoding="utf-8") as lines:
        for i in range(count):
            answer = " ".join(str((i * 7919 + j * 31) % 10) for j in range((tokens - 48) // 2))
            messages = [
                {"role": "user", "content": f"Count from {i}."},
                {"role": "assistant", "content": answer},
            ]
            row = {"id": f"row{i}", "kind": "sft", "messages": messages}
            lines.write(json.dumps(row) + "\n")


def spec_of(backend: str, tokens: int, steps: int) -> TrainSpec:
    """Each backend as its own guide says: Unsloth offloads checkpoints, a plain trainer cannot."""
    return TrainSpec.model_validate(
        {
            "backend": backend,
            "method": "qlora",
            "rank": 16,
            "batch_size": 8,
            "device_batch_size": 2,
            "max_seq_len": tokens,
            "max_steps": steps,
            "epochs": 100,
            "warmup_steps": 2,
            "optimizer": "adamw_8bit",
            "activation_checkpointing": "offload" if backend == "unsloth" else "block",
        }
    )


def measure(
    size: str, base: Path, backend: str, tokens: int, steps: int, card: Card, folder: Path
) -> Point:
    folder.mkdir(parents=True)
    write_rows(folder / "train.jsonl", 64, tokens)
    found = resolve(str(base), base.parent)
    job = TrainJob(
        name="bench",
        base_model=found.path,
        base_ref=found.ref,
        base_digest=found.digest,
        train=folder / "train.jsonl",
        data_digest=f"{tokens} tokens",
        spec=spec_of(backend, tokens, steps),
        gpus=1,
    )
    before = cpu_s()
    result = launch(job, folder / "job")
    speed = speed_of(read_metrics(folder / "job" / "metrics.jsonl"))
    return Point(
        size=size,
        backend=backend,
        tokens=tokens,
        tokens_per_s=speed,
        peak_memory_gib=result.details["peak_gpu_gib"],
        estimated_gib=result.details["estimated_gib"],
        mfu=round(mfu(shape_of(found.config), speed, card), 4),
        cpu_s=round(cpu_s() - before, 1),
    )


def speed_of(lines: Sequence[dict[str, Any]]) -> float:
    """Tokens per second of the steps after the warm-up: of the median step, not of the mean."""
    late = lines[WARM_UP:]
    each = [
        (line["tokens"] - before["tokens"]) / (line["seconds"] - before["seconds"])
        for before, line in zip(lines[WARM_UP - 1 :], late, strict=False)
    ]
    return round(float(statistics.median(each)), 1)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(points: Sequence[Point]) -> dict[str, Any]:
    """What the issue asks for: medians over the pairs of both backends at one size and length."""
    by = {(p.size, p.tokens, p.backend): p for p in points}
    pairs = [
        (p, by[p.size, p.tokens, "trl"])
        for p in points
        if p.backend == "unsloth" and (p.size, p.tokens, "trl") in by
    ]
    errors = [p.estimated_gib / p.peak_memory_gib - 1 for p in points]
    median = statistics.median
    return {
        "speedup": round(median(u.tokens_per_s / t.tokens_per_s for u, t in pairs), 3),
        "memory_ratio": round(median(u.peak_memory_gib / t.peak_memory_gib for u, t in pairs), 3),
        "mfu": {b: max(p.mfu for p in points if p.backend == b) for b in BACKENDS},
        "worst_under": round(max(0.0, -min(errors)), 4),
        "mean_abs_error": round(statistics.mean(map(abs, errors)), 4),
        "points": [p._asdict() for p in points],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(
            f"bench.train_gpu needs a CUDA GPU, and torch {torch.__version__} finds none here: "
            "nothing was measured",
            file=sys.stderr,
        )
        return 2
    card = card_of(torch.cuda.get_device_name())
    if card is None:
        print(
            f"the peak of {torch.cuda.get_device_name()} is not known: add it to PEAK_TFLOPS in "
            "trainyard/training/budget.py",
            file=sys.stderr,
        )
        return 2
    points = []
    print(
        f"{'size':4} {'backend':8} {'tokens':>6} {'tokens/s':>9} {'GiB':>6} {'est.':>6} {'MFU':>6}"
    )
    with tempfile.TemporaryDirectory() as name:
        for size in asked.sizes:
            base = Path(name) / size
            write_base(base, SIZES[size], "cuda")
            for tokens in asked.lengths:
                for backend in BACKENDS:
                    folder = Path(name) / f"{size}-{tokens}-{backend}"
                    try:
                        p = measure(size, base, backend, tokens, asked.steps, card, folder)
                    except TrainyardError as error:
                        print(f"{size:4} {backend:8} {tokens:6} did not train: {error}", flush=True)
                        continue
                    points.append(p)
                    print(
                        f"{size:4} {backend:8} {tokens:6} {p.tokens_per_s:9.0f} "
                        f"{p.peak_memory_gib:6.2f} {p.estimated_gib:6.2f} {p.mfu:6.1%}",
                        flush=True,
                    )
            shutil.rmtree(base)
    found = summary(points)
    fast, small = found["speedup"] >= 2, found["memory_ratio"] <= 0.5
    print(
        f"goal of 2 times the speed {'met' if fast else 'not met'}, "
        f"of half the memory {'met' if small else 'not met'}"
    )
    print(json.dumps({"card": card} | found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
