"""`lineage.json`: everything a version comes from, in one record with a schema of its own.

Text that a person typed (recipe, working tree) is masked before it is kept: a version travels
further than the machine it was made on.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainyard import files, secrets
from trainyard.errors import InputError, NotFound

FILE = "lineage.json"
SCHEMA = 2
SCHEMA_FILE = Path(__file__).with_name("lineage.schema.json")

_DIFF_LIMIT = 1 << 20
_UNTRACKED_LIMIT = 1000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Git(_Record):
    """The working tree that the release ran in."""

    commit: str
    branch: str | None
    """None when no branch is checked out."""
    remote: str | None
    """Address of `origin`, without credentials."""
    dirty: bool
    """Tracked files differ from the commit, or there are files that git neither tracks nor
    ignores."""
    diff: str = ""
    """`git diff HEAD`, secrets masked, at most 1 MiB of it."""
    diff_digest: str | None = None
    """sha256 of the whole masked difference."""
    untracked: dict[str, str] = {}
    """Path -> sha256."""


class RecipeFacts(_Record):
    path: str
    text: str
    """As written, secrets masked."""
    resolved: dict[str, Any]
    """Every key with the value it had, overrides included."""
    digest: str
    """sha256 of `resolved`."""


class BaseModelFacts(_Record):
    ref: str
    revision: str
    digest: str
    license: str | None = None


class DataFacts(_Record):
    digest: str
    sources: dict[str, str] = {}
    """File -> sha256 of what was read."""
    lines: int = 0
    train: int = 0
    val: int = 0
    quarantine: int = 0
    split: str | None = None
    """The rule that divides train from val."""
    license: str | None = None


class InputFile(_Record):
    """A file that the release read, and where it is found again."""

    role: Literal["data", "eval set", "base model"]
    source: str
    """The recipe's own words for where it is."""
    name: str
    """`source`, with the file appended for folders and remote places."""
    sha256: str
    size: int
    """Bytes."""
    dvc_md5: str | None = None
    """What its DVC pointer says, when it has one."""
    archived: bool = False
    """The archive has it, under its sha256."""


class Interval(_Record):
    """A mean over samples with its two-sided 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Samples."""
    method: str


class Cost(_Record):
    gpus: int
    train_s: float
    """Seconds of training, over all attempts."""
    evaluate_s: float | None
    price_per_gpu_hour: float | None
    amount: float | None
    """GPUs times hours times price, in the currency of the price; None without a price."""


class Approval(_Record):
    who: str
    why: str
    time: str


class Gpu(_Record):
    name: str
    driver: str
    memory_mib: int


class Environment(_Record):
    python: str
    platform: str
    machine: str
    cpus: int
    threads: int | None
    """CPU threads of the training: they decide how sums are split and so their last bits."""
    packages: dict[str, str]
    """Distribution -> exact version."""
    lock_digest: str | None
    """sha256 of `constraints.txt`."""
    image: str | None
    """Image that ran it, as TRAINYARD_IMAGE says."""
    gpus: tuple[Gpu, ...] = ()
    cuda: str | None = None
    """Newest CUDA of the driver."""


class Timing(_Record):
    name: str
    seconds: float | None
    skipped: bool


class Lineage(_Record):
    """Where a version comes from and what it proved."""

    # schema 1 had no inputs, intervals, seeds, evidence, parity, cost, approval and tracker_runs

    schema_version: int = SCHEMA
    name: str
    digest: str
    """Digest of the adapter, which names the version."""
    created: str
    run_id: str
    git: Git | None
    """None outside a git repository."""
    recipe: RecipeFacts
    base_model: BaseModelFacts
    data: DataFacts
    inputs: tuple[InputFile, ...] = ()
    seeds: dict[str, int] = {}
    """What is drawn at random -> its seed."""
    training: dict[str, Any]
    """What the training process reported, and its seed."""
    environment: Environment
    stages: tuple[Timing, ...] = ()
    scores: dict[str, float] = {}
    """`suite/metric` -> the candidate's mean."""
    intervals: dict[str, Interval] = {}
    """The same with bounds, where there is more than one sample."""
    verdict: str
    gates: tuple[dict[str, Any], ...] = ()
    """Every gate's result, as decided."""
    eval_sets: dict[str, str] = {}
    """File -> sha256 of the samples that were asked."""
    evidence: dict[str, str] = {}
    """File of `evaluation/` -> sha256: what scores and verdict rest on."""
    parity: dict[str, Any] | None = None
    """Proof that what is served is what was trained, step by step; None where none was made."""
    cost: Cost | None = None
    approval: Approval | None = None
    """None where nobody had to approve."""
    parent: str | None = None
    """Digest of the champion it was compared with."""
    tracker_runs: dict[str, str] = {}
    """Tracker -> its id of the run."""
    flow_run: str | None = None
    """Prefect's id of the release."""
    who: str = ""
    """Who or what started the release."""


def read(path: Path) -> Lineage:
    """Raises NotFound without the file, InputError for one that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    try:
        version = json.loads(text).get("schema_version", 0)
        if version > SCHEMA:
            raise InputError(
                f"{path} has schema {version} and this trainyard reads up to {SCHEMA}; update it"
            )
        return Lineage.model_validate_json(text)
    except (ValidationError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no lineage: {str(error).splitlines()[0]}") from None


def recipe_facts(path: str, text: str, resolved: Mapping[str, Any]) -> RecipeFacts:
    plain = dict(resolved)
    return RecipeFacts(
        path=path, text=secrets.mask(text), resolved=plain, digest=files.digest_json(plain)
    )


def git_state(folder: Path = Path()) -> Git | None:
    """Return the state of the working tree around `folder`; None when it is in no repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    root = Path((_git(folder, "rev-parse", "--show-toplevel") or str(folder)).strip())
    remote = _git(folder, "remote", "get-url", "origin")
    branch = (_git(folder, "symbolic-ref", "--short", "-q", "HEAD") or "").strip()
    diff = secrets.mask(_git(root, "diff", "--no-ext-diff", "--no-color", "HEAD") or "")
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z") or ""
    untracked = [name for name in listed.split("\0") if name and (root / name).is_file()]
    return Git(
        commit=commit.strip(),
        branch=branch or None,
        remote=secrets.mask(remote.strip()) if remote else None,
        dirty=bool(diff or untracked),
        diff=diff[:_DIFF_LIMIT],
        diff_digest=hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        untracked={name: files.digest_file(root / name) for name in untracked[:_UNTRACKED_LIMIT]},
    )


def environment(threads: int | None = None, *, lock: Path = Path("constraints.txt")) -> Environment:
    """Describe this machine; `threads` are those of a training, by default OMP_NUM_THREADS."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    gpus, cuda = _gpus()
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        machine=platform.machine(),
        cpus=os.cpu_count() or 1,
        threads=threads or (int(given) if given.isdigit() else None),
        packages=dict(sorted((d.name.lower(), d.version) for d in distributions() if d.name)),
        lock_digest=files.digest_file(lock) if lock.is_file() else None,
        image=os.environ.get("TRAINYARD_IMAGE"),
        gpus=gpus,
        cuda=cuda,
    )


def differences(recorded: Environment, here: Environment) -> list[str]:
    """Say what differs between two environments, the packages by name."""
    said = [
        f"{field}: {was} then, {now} here"
        for field in (
            "python",
            "platform",
            "machine",
            "cpus",
            "threads",
            "lock_digest",
            "image",
            "gpus",
            "cuda",
        )
        if (was := getattr(recorded, field)) != (now := getattr(here, field))
    ]
    for name in sorted(recorded.packages.keys() | here.packages.keys()):
        was, now = recorded.packages.get(name, "absent"), here.packages.get(name, "absent")
        if was != now:
            said.append(f"{name}: {was} then, {now} here")
    return said


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None when it is not there or says no."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, check=False, timeout=60
    )
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """Ask nvidia-smi, which needs no torch; none without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    asked = "--query-gpu=name,driver_version,memory.total"
    listed = subprocess.run(
        [program, asked, "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    table = subprocess.run([program], capture_output=True, text=True, check=False).stdout
    cuda = table.partition("CUDA Version:")[2].split()
    if listed.returncode:
        return (), None
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.stdout.splitlines()]
    gpus = tuple(
        Gpu(name=row[0], driver=row[1], memory_mib=int(row[2])) for row in rows if len(row) == 3
    )
    return gpus, cuda[0] if cuda else None
