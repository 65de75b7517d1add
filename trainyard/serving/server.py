"""OpenAI-compatible server for small models on the CPU: `python -m trainyard.serving.server`.

Prints `ready URL` once it serves. SIGTERM: what runs is finished, what is new gets 503. Exit 0
after that, 2 when it could not start.
"""

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

from trainyard.errors import InputError, TrainyardError
from trainyard.lean import leave_out

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # threads that spin while they wait make a step ten times slower on a machine that is shared
    "OMP_WAIT_POLICY": "PASSIVE",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trainyard.serving.server", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--name", required=True, help="name the base model is served under")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a step")
    parser.add_argument("--max-batch", type=int, default=16, help="sequences per adapter")
    parser.add_argument("--max-queue", type=int, default=64, help="sequences that may wait")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--drain-s", type=float, default=30, help="time to finish after SIGTERM")
    parser.add_argument(
        "--adapter-admin",
        action="store_true",
        help="offer loading and unloading of adapters on an address that is not loopback, too",
    )
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args(argv)
    for name in ("threads", "max_batch", "max_queue"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


def adapters(given: list[str], base_name: str) -> dict[str, Path]:
    """NAME=FOLDER pairs; a folder may hold `=`, a name may not. Raises InputError."""
    found: dict[str, Path] = {}
    for pair in given:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--adapter {pair}: write it as NAME=FOLDER")
        if name in found or name == base_name:
            raise InputError(f"--adapter {name}: the name is given twice")
        found[name] = Path(folder)
    return found


def bind(host: str, port: int) -> socket.socket:
    """Take the port before seconds of loading. Nobody is answered until somebody listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port}: {why}; give another --port") from error
    return bound


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    try:
        with bind(arguments.host, arguments.port) as bound:
            chosen = adapters(arguments.adapter, arguments.name)
            leave_out("bitsandbytes", "sklearn", "torchao")
            # after the port and the environment: this imports torch and transformers
            from trainyard.serving.server_run import run  # noqa: PLC0415

            return run(arguments, chosen, bound)
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # nothing is left to save, and taking torch down in order costs a second and more
    os._exit(status)
