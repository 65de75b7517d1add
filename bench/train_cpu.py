"""NF4 QLoRA on this CPU with both backends: same rows, same order, same steps.

    python -m bench.train_cpu [--steps 15] [--threads 2]

`tokens_per_s` is over the steps alone; `cpu_s` and `wall_s` are of the whole process, with imports.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from bench.small_job import small_job
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    found = {}
    for backend in ("unsloth", "trl"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job = small_job(
                folder / "in", backend=backend, max_steps=asked.steps, threads=asked.threads
            )
            before, begin = cpu_s(), time.monotonic()
            result = launch(job, folder / "job")
            lines = read_metrics(folder / "job" / "metrics.jsonl")
            steps_s = lines[-1]["seconds"] - lines[0]["seconds"]
            found[backend] = {
                "tokens_per_s": round((lines[-1]["tokens"] - lines[0]["tokens"]) / steps_s, 1),
                "peak_memory_gib": result.details["peak_rss_gib"],
                "cpu_s": round(cpu_s() - before, 1),
                "wall_s": round(time.monotonic() - begin, 1),
                "loss": round(lines[-1]["loss"], 4),
            }
    keys = list(found["trl"])
    print(f"{'backend':8} " + " ".join(f"{key:>16}" for key in keys))
    for backend, values in found.items():
        print(f"{backend:8} " + " ".join(f"{values[key]:16}" for key in keys))
    print(json.dumps({"steps": asked.steps, "threads": asked.threads} | found))


if __name__ == "__main__":
    main()
