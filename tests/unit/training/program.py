"""A program that honours the job contract without training: python program.py MODE FOLDER."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainyard.files import digest_tree
from trainyard.training.checkpoints import mark_complete

mode, folder = sys.argv[1], Path(sys.argv[2])
job = json.loads((folder / "job.json").read_text())
first = job["attempt"] == 1


def end(code, kind="", message=""):
    if kind:
        (folder / "error.json").write_text(json.dumps({"kind": kind, "message": message}))
    sys.exit(code)


def beat(phase="training"):
    (folder / "heartbeat.json").write_text(json.dumps({"phase": phase, "time": time.time()}))


beat()
rank = os.environ.get("JOB_COMPLETION_INDEX", "0")
if mode.startswith("second-node"):
    with (folder / "ran").open("a") as ran:
        ran.write(f"{rank}:{job['attempt']}\n")
match mode:
    case "second-node-needs-2-rows" if rank == "1" and job["device_batch_size"] > 2:
        end(86, "out of memory", "CUDA out of memory")
    case "second-node-needs-2-rows" if job["device_batch_size"] > 2:
        time.sleep(250)  # as one that waits for the other
    case "second-node-needs-2-rows" if rank == "1":
        end(0)
    case "second-node-needs-2-rows":
        while "1:2" not in (folder / "ran").read_text():
            time.sleep(0.1)
    case "second-node-crashes-once" if first:
        end(1) if rank == "1" else time.sleep(250)
    case "needs-2-rows" if job["device_batch_size"] > 2:
        end(86, "out of memory", "CUDA out of memory")
    case "never-fits":
        end(86, "out of memory", "CUDA out of memory")
    case "hangs-once" if first:
        time.sleep(60)
    case "hangs":
        time.sleep(60)
    case "killed-once" if first:
        os.kill(os.getpid(), signal.SIGKILL)
    case "not-finite":
        end(87, "not finite", "step 3: loss nan, gradient norm nan")
    case "self-check":
        end(88, "self-check", "padding: token 2 pads and ends a turn")
    case "bad-input":
        end(2, "input", "row 17 is too long")
    case "crashes":
        raise ImportError("no module named cuda")
    case "leaves-nothing":
        end(0)
    case "with-child":
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
            ]
        )
        (folder / "child").write_text(str(child.pid))

with (folder / "metrics.jsonl").open("a") as metrics:
    for step in (1, 2) if mode != "goes-on" or first else (2,):
        line = {"step": step, "total_steps": 2, "loss": 1.0, "tokens": 10 * step, "seconds": step}
        metrics.write(json.dumps(line) + "\n")
        metrics.flush()
        if mode == "goes-on" and first and step == 1:
            checkpoint = folder / "checkpoints" / "checkpoint-1"
            checkpoint.mkdir(parents=True)
            (checkpoint / "weights").write_bytes(b"1")
            mark_complete(checkpoint, 1, job["identity"])
        if mode == "with-child":
            time.sleep(60)
if mode == "goes-on" and first:
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "adapter").mkdir(exist_ok=True)
(folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
result = {"steps": 2, "loss": 1.0, "tokens": 20, "seconds": 2, "backend": "fake", "digest": ""}
result["digest"] = digest_tree(folder / "adapter")
(folder / "result.json").write_text(json.dumps(result))
