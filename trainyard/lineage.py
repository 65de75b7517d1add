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
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trainyard import files, secrets
from trainyard.errors import InputError, NotFound

FILE = "lineage.json"
SCHEMA = 1
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
    """OMP_NUM_THREADS, which decides how sums are split and so their last bits."""
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
    training: dict[str, Any]
    """What the training process reported, and its seed."""
    environment: Environment
    stages: tuple[Timing, ...] = ()
    scores: dict[str, float] = {}
    """`suite/metric` -> the candidate's mean."""
    verdict: str
    gates: tuple[dict[str, Any], ...] = ()
    """Every gate's result, as decided."""
    eval_sets: dict[str, str] = {}
    """File -> sha256 of the samples that were asked."""
    parent: str | None = None
    """Digest of the champion it was compared with."""
    tracker_run: str | None = None
    flow_run: str | None = None
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


def environment(lock: Path = Path("constraints.txt")) -> Environment:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    gpus, cuda = _gpus()
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        machine=platform.machine(),
        cpus=os.cpu_count() or 1,
        threads=int(threads) if threads.isdigit() else None,
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
        )
        if (was := getattr(recorded, field)) != (now := getattr(here, field))
    ]
    for name in sorted(recorded.packages.keys() | here.packages.keys()):
        was, now = recorded.packages.get(name, "absent"), here.packages.get(name, "absent")
        if was != now:
            said.append(f"{name}: {was} then, {now} here")
    return said


def draw(lineage: Lineage) -> str:
    """Draw a version's origin as text, from what is served back to what it was made of."""
    git, data, environment = lineage.git, lineage.data, lineage.environment
    state = "no git repository"
    if git:
        edited = " with changes in no commit" if git.dirty else ""
        state = (
            f"{git.commit[:12]} on {git.branch or 'no branch'}{edited}, {git.remote or 'no remote'}"
        )
    parent = lineage.parent[:12] if lineage.parent else "none: the first version"
    scores = ", ".join(f"{name} {value:.4g}" for name, value in sorted(lineage.scores.items()))
    gates = "; ".join(f"{gate.get('id')} {gate.get('verdict')}" for gate in lineage.gates)
    return "\n".join(
        [
            f"{lineage.name}@{lineage.digest[:12]}   {lineage.verdict}, {lineage.created}",
            f"├─ gates        {gates or 'none recorded'}",
            f"├─ scores       {scores or 'none recorded'}",
            f"├─ run          {lineage.run_id}, started by {lineage.who or 'nobody named'}",
            f"├─ recipe       {lineage.recipe.path}, sha256 {lineage.recipe.digest[:12]}",
            f"├─ commit       {state}",
            f"├─ data         sha256 {data.digest[:12]}: {data.train} train, {data.val} val, "
            f"{data.quarantine} set aside, of {data.lines} lines",
            f"├─ base model   {lineage.base_model.ref}, {lineage.base_model.revision}, "
            f"sha256 {lineage.base_model.digest[:12]}",
            f"├─ environment  Python {environment.python}, {len(environment.packages)} packages, "
            f"{environment.cpus} CPUs, {len(environment.gpus)} GPUs",
            f"└─ parent       {parent}",
        ]
    )


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
