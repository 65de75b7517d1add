"""Memory, disk, time and money that a release will need: from its recipe, before it runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from trainyard import base_model, files
from trainyard.errors import Unavailable
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.release.data import Checked
from trainyard.training import estimates
from trainyard.training.budget import Budget, budget
from trainyard.training.launcher import choose
from trainyard.training.memory import GIB, estimate, fit, shape_of

KNOWN_SIZES = Path(__file__).parent / "training" / "known_sizes.json"
BYTES_PER_TOKEN = 3.5
"""Of English text in JSON; only where no tokenizer has counted yet."""


class Memory(Frozen):
    needed_gib: float
    available_gib: float | None
    """Of one GPU; of the machine, where training runs on the CPU; None when it is not known."""
    fits: bool | None
    micro_batch: int | None
    """Most rows per forward pass that fit, at the same batch size."""


class Needs(NamedTuple):
    memory: Memory | None
    budget: Budget | None
    disk: dict[str, float]
    problems: list[str]
    notes: list[str]


class Rows(NamedTuple):
    rows: int
    mean_tokens: float
    note: str | None


def of(recipe: Recipe, home: Path, checked: Checked | None) -> Needs:
    notes: list[str] = []
    config = _config(recipe, home, notes)
    free = shutil.disk_usage(home if home.exists() else Path()).free / GIB
    if config is None:
        return Needs(None, None, {"free_gib": round(free, 1)}, [], notes)
    factor = _correction(recipe, home, notes)
    processes = recipe.resources.processes
    need = replace(estimate(config, recipe.train, processes=processes), correction=factor)
    available = _available(recipe)
    found = fit(need, available) if available else None
    too_large = found is not None and found.verdict == "too large"
    memory = Memory(
        needed_gib=round(need.total, 2),
        available_gib=None if available is None else round(available, 1),
        fits=None if found is None else not too_large,
        micro_batch=found.device_batch_size if found else None,
    )
    rows = count_rows(recipe, checked)
    notes += [rows.note] if rows.note else []
    cost = budget(
        shape_of(config),
        recipe.train,
        recipe.resources,
        rows=rows.rows,
        mean_tokens=rows.mean_tokens,
    )
    problems = ["; ".join(found.sentences)] if found and too_large else []
    if found and found.verdict == "tight":
        notes += found.sentences
    if cost.disk_gib > free:
        problems.append(f"checkpoints need {cost.disk_gib:.1f} GiB and {home} has {free:.1f} free")
    if uneven := recipe.train.why_uneven(processes):
        problems.append(uneven)
    notes += _export_notes(cost, home, free)
    if cost.hours > recipe.resources.max_hours:
        problems.append(
            f"training takes about {cost.hours:.1f} hours and resources.max_hours is "
            f"{recipe.resources.max_hours:g}"
        )
    disk = {
        "needed_gib": round(cost.disk_gib, 2),
        "export_gib": round(cost.export_gib, 2),
        "free_gib": round(free, 1),
    }
    return Needs(memory, cost, disk, problems, notes)


def _correction(recipe: Recipe, home: Path, notes: list[str]) -> float:
    """What earlier trainings of the same kind measured, of what was estimated."""
    spec = recipe.train
    found = estimates.correction(home, estimates.kind_of(spec, recipe.resources, choose(spec)))
    if found.ratio != 1:
        notes.append(
            f"memory is the formula's times {found.ratio:.2f}: what {found.pairs} trainings of "
            "this kind measured"
        )
    return found.ratio


def _export_notes(cost: Budget, home: Path, free: float) -> list[str]:
    """Say what an export of the version will lack on this machine."""
    notes = []
    if cost.disk_gib + cost.export_gib > free:
        notes.append(
            f"a merged export takes {cost.export_gib:.1f} GiB more, and {home} has {free:.1f} free"
        )
    memory = psutil.virtual_memory().total / GIB
    if cost.merge_gib > memory:
        notes.append(
            f"a merge takes {cost.merge_gib:.1f} GiB of memory, and this machine has {memory:.1f}: "
            "export on a larger one"
        )
    return notes


def _config(recipe: Recipe, home: Path, notes: list[str]) -> dict[str, Any] | None:
    """The base's config.json, or its sizes from our table when it is not on this machine."""
    try:
        trusted = recipe.trust_remote_code
        found = base_model.resolve(
            recipe.base_model, home, trust_remote_code=trusted, download=False
        )
        return found.config
    except Unavailable as error:
        name = recipe.base_model.removeprefix("hf://").partition("@")[0]
        sizes: dict[str, dict[str, Any]] = files.read_json(KNOWN_SIZES)
        if name not in sizes:
            notes.append(f"memory, time and cost are not known: {error}")
            return None
        notes.append(f"{name} is not on this machine: its sizes come from a table of known bases")
        return sizes[name]


def _available(recipe: Recipe) -> float | None:
    if recipe.resources.gpus:
        return recipe.resources.memory_gib
    return float(psutil.virtual_memory().available) / GIB


def count_rows(recipe: Recipe, checked: Checked | None) -> Rows:
    """Rows and their mean length: as checked, or guessed from file sizes."""
    if checked is not None:
        kept = checked.verdict.train + checked.verdict.val
        return Rows(checked.verdict.train, checked.verdict.tokens / max(kept, 1), None)
    lines = size = 0
    for source in recipe.data.sources:
        for path in _local(source.path):
            size += path.stat().st_size
            with path.open("rb") as file:
                lines += sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    lines = max(lines, 1)
    mean = min(size / lines / BYTES_PER_TOKEN, recipe.train.max_seq_len)
    return Rows(lines, max(mean, 1.0), "lengths are guessed from file sizes: data not checked yet")


def _local(pattern: str) -> list[Path]:
    if "://" in pattern:
        return []
    path = Path(pattern)
    if path.is_dir():
        return [p for p in path.rglob("*") if p.is_file()]
    return [path] if path.is_file() else list(Path().glob(pattern)) if "*" in pattern else []
