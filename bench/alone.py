"""A program that proves that it is alone on its GPU: standard library only, starts at once.

The proof owes nothing to `trainyard.slots`: an abstract socket named after the GPU, which the
kernel gives to one process at a time, and a line with the monotonic time before and after.
"""

import os
import socket
import sys
import time


def main(log: str, run: str, seconds: str) -> None:
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    here = socket.socket(socket.AF_UNIX)
    try:
        here.bind(f"\0{os.path.abspath(log)}/{gpu}")  # noqa: PTH100  (pathlib takes longer to import)
        event = "start"
    except OSError:
        event = "double"
    _write(log, event, gpu, run)
    time.sleep(float(seconds))
    _write(log, "end", gpu, run)


def _write(log: str, event: str, gpu: str, run: str) -> None:
    line = f"{event} {gpu} {run} {os.getppid()} {time.monotonic():.3f}\n"
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
