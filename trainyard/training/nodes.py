"""Several machines that train together, as the pods of an indexed Kubernetes Job.

`python -m trainyard.training.nodes --nodes=N COMMAND...` is what each pod runs. The first runs the
command, in which the launcher calls the other nodes for each attempt by a file that all of them
see. The others start the same program as a part of it, until the command has ended.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import PositiveInt

from trainyard.errors import InputError
from trainyard.files import read_json, write_json
from trainyard.training import job as contract
from trainyard.training.distributed import NODES, Node, here
from trainyard.training.job import Frozen, JobFile
from trainyard.training.watchdog import running, sigterm_raises

logger = logging.getLogger(__name__)

CALLS = "TRAINYARD_CALLS"
"""Environment: the folder of calls, on a volume that all pods of a Job mount."""
POLL_S = 1.0
GRACE_S = 10.0
"""After another node's program failed: for this one's own to end, or to write a checkpoint."""


class Call(Frozen):
    """What the first node asks of the others."""

    folder: Path | None = None
    attempt: PositiveInt | None = None
    """Absent between attempts."""
    over: bool = False


@contextlib.contextmanager
def called(file: JobFile, folder: Path) -> Iterator[None]:
    """The other nodes take part in this attempt, and leave when this ends."""
    if file.job.nodes == 1:
        yield
        return
    for end in folder.glob(_end_of("*")):
        end.unlink()
    _say(Call(folder=folder, attempt=file.attempt))
    try:
        yield
    finally:
        _say(Call())


def failed(file: JobFile, folder: Path) -> int | None:
    """Return the exit code of another node whose program failed in this attempt."""
    for rank in range(1, file.job.nodes):
        with contextlib.suppress(OSError, ValueError):
            end = read_json(folder / _end_of(rank))
            if end["attempt"] == file.attempt and end["exit"]:
                return int(end["exit"])
    return None


def follow(node: Node) -> None:
    """Take part in every attempt that the first node calls for, until it is over."""
    before = Call()
    while not (call := _heard(before)).over:
        if call == before or call.folder is None or call.attempt is None:
            time.sleep(POLL_S)
            continue
        file = JobFile.model_validate(read_json(call.folder / contract.JOB))
        if file.attempt != call.attempt:  # a network file system may show the old one for a while
            time.sleep(POLL_S)
            continue
        logger.info("node %d takes part in attempt %d of %s", node.rank, call.attempt, call.folder)
        with running(file, call.folder, node.rank) as program:
            while (code := program.poll()) is None and _heard(call) == call:
                time.sleep(POLL_S)
        write_json(call.folder / _end_of(node.rank), {"attempt": call.attempt, "exit": code})
        before = call


def main(argv: list[str] | None = None) -> int:
    """Run the command on the first node, and follow it on the others; return the exit code."""
    parser = argparse.ArgumentParser(prog="trainyard.training.nodes", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    if given.nodes == 1:
        os.execvp(given.command[0], given.command)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ[NODES] = str(given.nodes)
    try:
        node = here(given.nodes)
    except InputError as error:
        print(error, file=sys.stderr)
        return contract.BAD_INPUT
    return _lead(given.command) if node.rank == 0 else _follow(node)


def _lead(command: list[str]) -> int:
    program = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda sent, _: program.send_signal(sent))
    try:
        code = program.wait()
    finally:
        _say(Call(over=True))
    return code if code >= 0 else 128 - code


def _follow(node: Node) -> int:
    with sigterm_raises():
        follow(node)
    return 0


def _end_of(rank: int | str) -> str:
    return f"node-{rank}-ended.json"


def _place() -> Path:
    """One file for each Job: the name of its first pod is in the address."""
    folder = Path(os.environ.get(CALLS, ".trainyard/nodes"))
    return folder / f"{os.environ['MASTER_ADDR']}.json"


def _say(call: Call) -> None:
    write_json(_place(), call.model_dump(mode="json"))


def _heard(before: Call) -> Call:
    try:
        return Call.model_validate(read_json(_place()))
    except (OSError, ValueError):  # not called yet, or a network file system in between
        return before


if __name__ == "__main__":
    sys.exit(main())
