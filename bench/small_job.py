"""The training that the CPU benches run: real rows of the quickstart, a few steps."""

import json
import shutil
from pathlib import Path

from trainyard.base_model import resolve
from trainyard.recipe.train import TrainSpec
from trainyard.training.job import TrainJob

QUICKSTART = Path("recipes/quickstart")


def write_rows(file: Path, count: int) -> None:
    """Write the first `count` chat rows of the quickstart, as the data check would."""
    kept = []
    for number, line in enumerate((QUICKSTART / "train.jsonl").read_bytes().splitlines()):
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError, TypeError):
            continue
        if messages and messages[-1].get("role") == "assistant" and 20 < len(line) < 800:
            kept.append({"id": f"line{number}", "kind": "sft", "messages": messages})
    file.write_text("".join(json.dumps(row) + "\n" for row in kept[:count]))


def small_job(folder: Path, **settings: object) -> TrainJob:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", 256)
    shutil.copytree(QUICKSTART / "base", folder / "base")
    base = resolve(str(folder / "base"), folder)
    spec = {
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "batch_size": 16,
        "device_batch_size": 16,
        "max_seq_len": 512,
        "epochs": 10,
    }
    return TrainJob(
        name="bench",
        base_model=base.path,
        base_ref=base.ref,
        base_digest=base.digest,
        train=folder / "train.jsonl",
        data_digest="bench",
        spec=TrainSpec.model_validate(spec | settings),
    )
