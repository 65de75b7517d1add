"""A trainer that honours the job contract and trains nothing: python trainer.py SECONDS FOLDER.

It proves that it is alone on its GPU, as `bench/alone.py` does.
"""

import json
import os
import sys
import time
from pathlib import Path

from bench import alone
from trainyard.files import digest_tree


def main(seconds: float, folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    (folder / "heartbeat.json").write_text(json.dumps({"phase": "training", "time": time.time()}))
    run = f"{job['job']['name']}-{job['job']['spec']['seed']}"
    alone.main(os.environ["BENCH_LOG"], run, str(seconds))
    line = {"step": 1, "total_steps": 1, "loss": 1.0, "tokens": 1, "seconds": seconds}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_model.safetensors").write_text(run)
    result = {"adapter": str(folder / "adapter"), "steps": 1, "loss": 1.0, "tokens": 1,
              "seconds": seconds, "backend": "command", "digest": digest_tree(folder / "adapter"),
              "attempts": []}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
