"""Time, money and disk that a training will need: rough figures, before anything is spent."""

from dataclasses import dataclass

from trainyard.recipe.resources import Card, ResourcesSpec
from trainyard.recipe.train import TrainSpec
from trainyard.training.memory import GIB, Shape, trained_weights

PEAK_TFLOPS: dict[Card, float] = {
    "T4": 65,
    "L4": 121,
    "A10": 125,
    "RTX-4090": 165,
    "A100-40": 312,
    "A100-80": 312,
    "L40S": 362,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
}
"""Dense 16-bit tensor throughput, from the vendor's data sheets."""

UTILISATION = 0.40
LAYER_S = 0.012
"""Fitted to Qwen-7B Q-LoRA on one A100 (README of QwenLM/Qwen): 3.0 s per 8 passes of 256 tokens
is 12 ms per layer and pass, and 22.3 s per 8 passes of 8,192 is 40 % of the card's peak."""

CPU_START_S = 12.0
CPU_FLOPS_PER_THREAD = 15e9
"""From the 0.9 M-parameter base of the quickstart, in NF4, on a Xeon with AMX. Overhead holds such
small models up: a larger one is faster than this says."""


@dataclass(frozen=True)
class Budget:
    steps: int
    tokens: int
    """Read over the whole training, padding not counted."""
    hours: float
    gpu_hours: float
    cost: float | None
    """In the currency of `price_per_gpu_hour`; None without a price."""
    disk_gib: float
    """Two checkpoints and the adapter; with `eval_every`, the best adapter in each of them too."""
    export_gib: float
    """A merged export, on disk."""
    merge_gib: float
    """Host memory to make one: the base in 32 bits."""


def budget(
    shape: Shape, train: TrainSpec, resources: ResourcesSpec, *, rows: int, mean_tokens: float
) -> Budget:
    """Estimate from the number of training rows and their mean length in tokens."""
    steps = train.total_steps(rows)
    if train.grpo:  # every answer is sampled: as long as it may be
        tokens = int(steps * train.batch_size * (mean_tokens + train.grpo.max_tokens))
    else:
        tokens = int(steps * min(train.batch_size, rows) * mean_tokens)
    hours = _seconds(shape, train, resources, steps, tokens) / 3600
    gpu_hours = hours * resources.training_gpus
    price = resources.price_per_gpu_hour
    trained = trained_weights(shape, train)
    return Budget(
        steps=steps,
        tokens=tokens,
        hours=hours,
        gpu_hours=gpu_hours,
        cost=None if price is None else gpu_hours * price,
        disk_gib=((2 * 12 + 4) + (3 * 4 if train.eval_every else 0)) * trained / GIB,
        export_gib=2 * shape.parameters / GIB,
        merge_gib=4 * shape.parameters / GIB,
    )


def _seconds(
    shape: Shape, train: TrainSpec, resources: ResourcesSpec, steps: int, tokens: int
) -> float:
    """Forward and backward through frozen weights are 2 + 2 operations per weight and token.

    Gradients of the weights themselves are 2 more. GPUs divide the work; what they say to each
    other is not counted.
    """
    weights = shape.active_linear + shape.vocabulary * shape.hidden
    passes = 4 if train.activation_checkpointing == "none" else 6
    passes += 2 if train.method == "full" else 0
    passes += 2 if train.grpo else 0  # sampling; token by token a GPU is far below its peak
    work = passes * weights * tokens
    if not resources.gpus:
        return CPU_START_S + work / (CPU_FLOPS_PER_THREAD * train.threads)
    peak = PEAK_TFLOPS[resources.gpu] if resources.gpu else min(PEAK_TFLOPS.values())
    launches = steps * train.grad_accum_steps * shape.layers * LAYER_S
    return max(launches, work / (peak * 1e12 * UTILISATION)) / resources.processes
