"""The contract between a release and the program that trains.

The program is called with one argument, the job's folder. It reads `job.json`, keeps
`heartbeat.json` fresh, appends a line per optimiser step to `metrics.jsonl`, leaves complete
checkpoints in `checkpoints/`, writes `adapter/` and, last, `result.json`. When it finds complete
checkpoints it goes on from the newest. On SIGTERM it writes a checkpoint and stops. It ends with
one of the codes below, and says in `error.json` why.
"""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from trainyard.errors import InputError
from trainyard.files import digest_file, digest_json
from trainyard.recipe.evaluate import PYTHON_METRIC
from trainyard.recipe.train import TrainSpec

OUT_OF_MEMORY = 86
NOT_FINITE = 87
SELF_CHECK = 88
BAD_INPUT = 2
STOPPED = 143
"""SIGTERM came, a checkpoint was written; as a shell would report it."""

CODES = {
    "out of memory": OUT_OF_MEMORY,
    "not finite": NOT_FINITE,
    "self-check": SELF_CHECK,
    "input": BAD_INPUT,
    "stopped": STOPPED,
}
"""Exit code of each `kind` in `error.json`."""

JOB = "job.json"
HEARTBEAT = "heartbeat.json"
METRICS = "metrics.jsonl"
BEST = "best"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
RESULT = "result.json"
ERROR = "error.json"
LOG = "log.txt"

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers",
    "safetensors", "numpy", "unsloth", "unsloth_zoo", "triton",
)  # fmt: skip
"""Whose versions can change what a training computes."""

Backend = Literal["unsloth", "trl", "command"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainJob(Frozen):
    """Everything that determines a training."""

    name: str
    base_model: Path
    """Folder of the base model."""
    base_ref: str
    """The base as the recipe names it; goes into the adapter's configuration."""
    base_digest: str
    train: Path
    """Canonical rows, one JSON object per line."""
    val: Path | None = None
    """Rows of the same form, for the loss during training."""
    data_digest: str
    spec: TrainSpec
    chat_template: str | None = None
    """Text that replaces the base's own chat template."""
    gpus: int = 0
    nodes: PositiveInt = 1
    """Machines that train together, each with `gpus` and `processes`."""
    processes: PositiveInt | None = None
    """Processes of one node; absent means one per GPU, and one without a GPU."""
    trust_remote_code: bool = False

    @property
    def world_size(self) -> int:
        return self.nodes * (self.processes or max(1, self.gpus))


class JobFile(Frozen):
    """`job.json`: the job, and what the launcher decided for this attempt."""

    job: TrainJob
    backend: Backend
    device_batch_size: PositiveInt
    """Rows per forward pass in this attempt: the recipe's, or less after memory ended."""
    attempt: PositiveInt
    identity: dict[str, str]
    """Digests that a checkpoint must share to be continued: see `identity_of`."""

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the weights only."""
        return self.job.world_size > 1 and self.job.spec.sharding != "ddp"

    @property
    def grad_accum_steps(self) -> int:
        return self.job.spec.batch_size // (self.device_batch_size * self.job.world_size)


class TrainResult(Frozen):
    adapter: Path
    steps: int
    loss: float
    """Mean training loss of the last ten steps."""
    tokens: int
    """Tokens read, padding not counted, over all attempts that led to the result."""
    seconds: float
    """Wall time of the attempts, with their start."""
    backend: str
    digest: str
    """Over the names and contents of the adapter's files."""
    attempts: list[dict[str, Any]]
    """Each start of the program: `backend`, `device_batch_size`, `from_step`, `exit`, `reason`,
    `seconds`."""
    details: dict[str, Any] = {}
    """What else the program measured: trained parameters, precision, peak memory, self-checks."""


def identity_of(job: TrainJob, backend: Backend) -> dict[str, str]:
    """Digest of each thing that must not change between a checkpoint and its continuation."""
    elsewhere = {"backend", "continue_from", "mirror_checkpoints"}
    spec = job.spec.model_dump(mode="json", exclude=elsewhere)
    template = job.chat_template or ""
    start = adapter_weights(job.spec.continue_from) if job.spec.continue_from else None
    return {
        "base model": job.base_digest,
        "data": digest_json([digest_file(job.train), job.val and digest_file(job.val)]),
        "recipe": digest_json(
            [spec, backend, job.gpus, job.world_size, template, start and digest_file(start)]
            + [digest_file(file) for file in reward_files(job.spec)]
        ),
        "environment": digest_json(environment()),
    }


def reward_files(spec: TrainSpec) -> list[Path]:
    """Return the files whose functions the recipe names as rewards; raises InputError without."""
    named = map(PYTHON_METRIC.fullmatch, spec.grpo.rewards if spec.grpo else ())
    found = [Path(match["file"]) for match in named if match]
    for file in found:
        if not file.is_file():
            raise InputError(f"train.grpo.rewards: {file} is not there")
    return found


def adapter_weights(folder: str) -> Path:
    """Return the weights of an adapter, or of the adapter of a version; raises InputError."""
    for place in (Path(folder), Path(folder) / ADAPTER):
        if (place / "adapter_model.safetensors").is_file():
            return place / "adapter_model.safetensors"
    raise InputError(f"continue_from {folder}: no adapter_model.safetensors there")


def environment() -> dict[str, str]:
    """Versions of what computes, for lineage and for refusing to go on with other ones."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
