"""The memory estimate against Qwen's published Q-LoRA table.

Source: the README of QwenLM/Qwen, "Profiling of Memory and Speed": one A100-80GB, batch size 1,
gradient accumulation 8, rank 64, the Hugging Face trainer with full logits, GPTQ base whose
embeddings `prepare_model_for_kbit_training` casts to 32 bits.

    python -m bench.vram
"""

import json
import statistics

from trainyard.recipe.train import TrainSpec
from trainyard.training.memory import Shape, estimate

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QWEN = {  # hidden, layers, MLP width, vocabulary; GB as published
    "Qwen-1.8B": ((2048, 24, 5504, 151936), (5.8, 6.0, 6.6, 7.8, 10.2, 15.8)),
    "Qwen-7B": ((4096, 32, 11008, 151936), (11.5, 11.5, 12.3, 13.9, 16.9, 23.5)),
    "Qwen-14B": ((5120, 40, 13696, 152064), (18.7, 18.4, 18.9, 19.9, 23.0, 27.9)),
    "Qwen-72B": ((8192, 80, 24576, 152064), (61.4, 61.4, 62.9, 64.1, 68.0, 75.6)),
}


def main() -> None:
    train = TrainSpec(rank=64, batch_size=8, device_batch_size=1, activation_checkpointing="block")
    errors = []
    print(f"{'model':10} {'tokens':>6} {'measured':>9} {'estimate':>9} {'error':>6}")
    for name, ((hidden, layers, mlp, vocabulary), measured) in QWEN.items():
        shape = Shape(
            hidden=hidden,
            layers=layers,
            mlp=mlp,
            active_mlp=mlp,
            query=hidden,
            key_value=hidden,
            vocabulary=vocabulary,
            tied=False,
        )
        for tokens, truth in zip(LENGTHS, measured, strict=True):
            found = estimate(shape, train, tokens=tokens, loss="full", embeddings_in_32_bits=True)
            errors.append(found.total / truth - 1)
            print(f"{name:10} {tokens:6} {truth:9.1f} {found.total:9.1f} {errors[-1]:+6.0%}")
    summary = {
        "mean_abs_error": round(statistics.mean(map(abs, errors)), 4),
        "worst_under": round(-min(errors), 4),
        "worst_over": round(max(errors), 4),
        "points": len(errors),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
