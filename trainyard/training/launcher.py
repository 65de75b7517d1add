"""Start the program that trains, watch it, and start it again where that can help."""

import importlib.util
import logging
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from trainyard import process
from trainyard.errors import InputError, TrainingFailed
from trainyard.files import digest_tree, read_json, write_json
from trainyard.recipe.train import TrainSpec
from trainyard.training import job as contract
from trainyard.training import nodes
from trainyard.training.checkpoints import discard_unusable, newest_complete, step_of
from trainyard.training.distributed import here
from trainyard.training.job import Backend, JobFile, TrainJob, TrainResult, identity_of
from trainyard.training.journal import Journal
from trainyard.training.mirror import Mirror
from trainyard.training.versions import check_unsloth
from trainyard.training.watchdog import (
    PROCESS,
    Limits,
    Watched,
    dump_stacks,
    running,
    sigterm_raises,
)

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]
"""Called with each line of `metrics.jsonl` as it appears, and `eta_s`, the seconds left."""

RUNGS = 4
"""How often the micro-batch is halved before the job is declared too large."""
RESTARTS = 1
"""How often a program that hung, or that somebody killed, is started again."""
POLL_S = 0.1
ATTEMPTS = "attempts.json"
DEFAULT_LIMITS = Limits()


def launch(
    job: TrainJob,
    folder: Path,
    *,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
    mirror: Mirror | None = None,
) -> TrainResult:
    """Train `job` in `folder` and return the result, going on from whole checkpoints found there.

    Raises InputError for what the recipe or the data must change, TrainingFailed otherwise.
    Whatever ends this call ends the program and its children first.
    """
    backend = choose_backend(job)
    _check(job, backend)
    training = _Training(job, folder.resolve(), backend, limits, progress or _ignore)
    training.prepare()
    finished = training.finished()
    if finished is not None:
        return finished
    if mirror:
        mirror.fetch(training.folder)
        training.discard()
    with sigterm_raises(), mirror.following(training.folder) if mirror else nullcontext():
        return training.climb()


def choose_backend(job: TrainJob) -> Backend:
    """Return the backend; `auto` is Unsloth where it is installed and can train the objective.

    Raises InputError when the recipe asks for a backend that is not installed.
    """
    if job.spec.backend != "command" and not _installed("trl"):
        raise InputError("the training libraries are not installed: pip install -e '.[train]'")
    if job.spec.backend == "unsloth" and not _installed("unsloth"):
        raise InputError("unsloth is not installed: see the README, or set backend: trl")
    return choose(job.spec)


def choose(spec: TrainSpec) -> Backend:
    """Return the recipe's backend, or what `auto` means on this machine."""
    if spec.backend != "auto":
        return spec.backend
    if spec.objective != "sft" or spec.method == "full":
        return "trl"
    return "unsloth" if _installed("unsloth") else "trl"


def _check(job: TrainJob, backend: Backend) -> None:
    """Raises InputError for what this backend, or this number of devices, cannot do."""
    spec, world = job.spec, job.world_size
    if backend == "unsloth":
        check_unsloth()
    if spec.sharding == "zero3" and world > 1 and not _installed("deepspeed"):
        raise InputError("sharding: zero3 needs DeepSpeed: pip install deepspeed, or set fsdp2")
    if spec.sharding != "ddp" and not job.gpus and world > 1:
        raise InputError(f"sharding {spec.sharding} divides a model among GPUs: set sharding: ddp")
    if backend == "trl" and spec.activation_checkpointing == "offload":
        raise InputError("activation_checkpointing: offload needs Unsloth, which is not installed")
    if backend != "command" and not job.gpus and spec.optimizer != "adamw":
        raise InputError(f"optimizer {spec.optimizer} needs a GPU: set optimizer: adamw")
    if uneven := spec.why_uneven(world):
        raise InputError(uneven)
    if job.nodes > 1:
        here(job.nodes)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _ignore(_: dict[str, Any]) -> None:
    return None


@dataclass
class _Training:
    job: TrainJob
    folder: Path
    backend: Backend
    limits: Limits
    progress: Progress

    def __post_init__(self) -> None:
        self.identity = identity_of(self.job, self.backend)
        self.attempts: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """End what still runs in the folder, and throw away what another job left there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / PROCESS).is_file():
            process.stop(process.ProcessRecord.model_validate(read_json(self.folder / PROCESS)))
        known = self.folder / ATTEMPTS
        before = read_json(known) if known.is_file() else {"identity": {}, "attempts": []}
        changed = [
            name for name in self.identity if before["identity"].get(name) != self.identity[name]
        ]
        if changed and before["attempts"]:
            logger.info("the training starts afresh: %s changed since", " and ".join(changed))
        if changed:
            for name in (contract.METRICS, contract.RESULT, contract.ERROR, contract.LOG):
                (self.folder / name).unlink(missing_ok=True)
        self.attempts = [] if changed else before["attempts"]
        self.discard()

    def discard(self) -> None:
        for reason in discard_unusable(self.folder / contract.CHECKPOINTS, self.identity):
            logger.info("%s", reason)

    def finished(self) -> TrainResult | None:
        """Return the result that is there already, undamaged."""
        file = self.folder / contract.RESULT
        if not file.is_file():
            return None
        result = self.read_result()
        if result.adapter.is_dir() and digest_tree(result.adapter) == result.digest:
            return result
        logger.info("the adapter in %s is damaged, the training runs again", self.folder)
        file.unlink()
        return None

    def read_result(self) -> TrainResult:
        values = read_json(self.folder / contract.RESULT) | {
            "adapter": self.folder / contract.ADAPTER,
            "attempts": self.attempts,
            "seconds": round(sum(float(a["seconds"]) for a in self.attempts), 2),
        }
        return TrainResult.model_validate(values)

    def climb(self) -> TrainResult:
        """Try, and try again with less memory or after an accident, until it ends or cannot."""
        micro = min([self.job.spec.device_batch_size, *self._smaller_before()])
        rungs, restarts = 0, 0
        end = time.monotonic() + self.limits.total_s
        while True:
            attempt = self.attempt(micro, end)
            if attempt["exit"] == 0:
                return self.read_result()
            logger.info("attempt %d: %s", len(self.attempts), attempt["reason"])
            smaller = half(self.job.spec.batch_size // self.job.world_size, micro)
            if attempt["exit"] == contract.OUT_OF_MEMORY and smaller and rungs < RUNGS:
                rungs, micro = rungs + 1, smaller
            elif attempt["restart"] and restarts < RESTARTS and time.monotonic() < end:
                restarts += 1
            else:
                _raise(attempt, self.folder)

    def _smaller_before(self) -> list[int]:
        """Micro-batches that an earlier launch of this job came down to."""
        return [int(attempt["device_batch_size"]) for attempt in self.attempts]

    def attempt(self, micro: int, end: float) -> dict[str, Any]:
        """Run the program once, and record what came of it."""
        file = JobFile(
            job=self.job,
            backend=self.backend,
            device_batch_size=micro,
            attempt=len(self.attempts) + 1,
            identity=self.identity,
        )
        for name in (contract.ERROR, contract.RESULT, contract.HEARTBEAT):
            (self.folder / name).unlink(missing_ok=True)
        write_json(self.folder / contract.JOB, file.model_dump(mode="json"))
        checkpoint = newest_complete(self.folder / contract.CHECKPOINTS)
        first = step_of(checkpoint) if checkpoint else 0
        record: dict[str, Any] = {
            "backend": self.backend,
            "device_batch_size": micro,
            "from_step": first,
            "exit": None,
            "reason": "whoever watched it was ended",
            "restart": True,
            "seconds": 0.0,
        }
        self.attempts.append(record)
        self._save()
        before = Journal(self.folder).resume_at(first)
        record |= self._watch(file, before[-1]["seconds"] if before else 0.0, end)
        self.attempts[-1] = record
        self._save()
        return record

    def _save(self) -> None:
        known = {"identity": self.identity, "attempts": self.attempts}
        write_json(self.folder / ATTEMPTS, known)

    def _watch(self, file: JobFile, seconds: float, end: float) -> dict[str, Any]:
        begin = time.monotonic()
        reason, restart, elsewhere = None, False, None
        with nodes.called(file, self.folder), running(file, self.folder) as program:
            metrics = self.folder / contract.METRICS
            known = metrics.stat().st_size
            watched = Watched(self.folder, self.limits, begin, known, seconds)
            while program.poll() is None and reason is None and elsewhere is None:
                time.sleep(POLL_S)
                for line in watched.news():
                    self.progress(line)
                if (silence := watched.stalled()) is not None:
                    reason, restart = silence, True
                    dump_stacks(program)
                elif time.monotonic() > end:
                    reason = f"it took longer than {self.limits.total_s / 3600:.3g} hours"
                elif (elsewhere := nodes.failed(file, self.folder)) is not None:
                    with suppress(subprocess.TimeoutExpired):
                        program.wait(nodes.GRACE_S)
        for line in watched.news():
            self.progress(line)
        code = elsewhere if elsewhere and program.returncode else program.returncode
        if code not in (0, *contract.CODES.values()) and (self.folder / contract.ERROR).is_file():
            # torch.distributed.run has one code for whatever ends a worker
            code = contract.CODES[read_json(self.folder / contract.ERROR)["kind"]]
        if code == 0 and not (self.folder / contract.RESULT).is_file():
            code = 1
        ended_by_itself = reason is None
        lost = code < 0 or code == contract.STOPPED
        if file.job.nodes > 1:  # a node that lost another one ends with any code
            lost |= code not in (0, *contract.CODES.values())
        return {
            "exit": code if ended_by_itself else -signal.SIGKILL,
            "reason": reason or _why(self.folder, code),
            "restart": restart or (ended_by_itself and lost),
            "seconds": round(time.monotonic() - begin, 2),
        }


def half(batch_size: int, micro: int) -> int | None:
    """Return the largest micro-batch of at most half the size that divides the batch."""
    return next((m for m in range(micro // 2, 0, -1) if batch_size % m == 0), None)


def _why(folder: Path, code: int) -> str:
    if (folder / contract.ERROR).is_file():
        return str(read_json(folder / contract.ERROR)["message"])
    if code < 0:
        return f"{signal.Signals(-code).name} ended it: it was killed, or host memory ended"
    return "" if code == 0 else f"it ended with {code} and left no result"


def _raise(attempt: dict[str, Any], folder: Path) -> NoReturn:
    code, reason = attempt["exit"], attempt["reason"]
    if code == contract.BAD_INPUT and (folder / contract.ERROR).is_file():
        raise InputError(reason)
    named = {
        contract.NOT_FINITE: f"{reason}: lower learning_rate, or look at the rows of that step",
        contract.SELF_CHECK: f"a self-check failed before training began: {reason}",
        contract.OUT_OF_MEMORY: (
            f"{reason}; it does not fit with {attempt['device_batch_size']} rows per forward pass: "
            "shorten max_seq_len, set activation_checkpointing, or take a GPU with more memory"
        ),
    }
    if code in named:
        raise TrainingFailed(named[code])
    log = folder / contract.LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    tail = "\n".join(text.splitlines()[-15:])
    raise TrainingFailed(f"{attempt['backend']}: {reason}; {log} ends with:\n{tail}")
