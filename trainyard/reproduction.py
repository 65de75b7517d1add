"""Make a version again from what its lineage says, and compare the two.

The commit is checked out beside the working tree and its own code runs there, with the recorded
recipe and number of threads, on the files that the release read: those in the checkout where they
still have their sha256, else those in the archive. No network is needed for what these two have.
Every difference that is known beforehand is said before it starts.
Also the program that runs in the checkout: `python -m trainyard.reproduction FOLDER`.
"""

import copy
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainyard import files, inputs, lineage
from trainyard.base_model import HUB
from trainyard.errors import InputError, NotFound, TrainingFailed
from trainyard.lineage import InputFile, Lineage
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.storage import Store

ORDER, MADE = "order.json", "made.json"


class Made(Frozen):
    """What came out the second time."""

    data_digest: str
    digest: str
    scores: dict[str, float]
    """`suite/metric` -> mean; empty when the adapter is the same, byte by byte."""


class Reproduction(Frozen):
    name: str
    digest: str
    made: Made
    differences: tuple[str, ...]
    """What was known to differ before it started."""
    outside: tuple[str, ...]
    """Scores that lie outside the recorded intervals, or have none to be compared with."""
    seconds: float

    @property
    def identical(self) -> bool:
        return self.made.digest == self.digest

    @property
    def holds(self) -> bool:
        return self.identical or not self.outside

    def as_text(self) -> str:
        if self.identical:
            return (
                f"{self.name}@{self.digest[:12]} was made again, byte by byte, in "
                f"{self.seconds:.0f} s\n  recorded  {self.digest}\n  made      {self.made.digest}"
            )
        if self.outside:
            return f"{self.name}@{self.digest[:12]} was not made again: {'; '.join(self.outside)}"
        return (
            f"{self.name}@{self.digest[:12]} was made again as {self.made.digest[:12]}, with "
            "scores within the recorded intervals"
        )


def foresee(facts: Lineage, root: Path = Path()) -> list[str]:
    """Say everything that differs between then and here."""
    said = lineage.differences(facts.environment, lineage.environment(facts.environment.threads))
    git = facts.git
    if git is None:
        said.append("commit: made outside a git repository, so the code here is used")
    elif not _has_commit(git.commit, root):
        said.append(f"commit: {git.commit[:12]} is not in this repository, the code here is used")
    elif git.dirty and not _restorable(git):
        said.append("commit: made with changes that the lineage does not hold whole")
    return said


def reproduce(
    facts: Lineage,
    home: Path,
    root: Path = Path(),
    *,
    store: Store | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Train again in `home / "reproductions"` and compare; evaluates only if the adapters differ.

    `said` hears every difference before the start. One that was cut short goes on where it was.
    Raises NotFound for an input that neither checkout nor archive (`store`) has, TrainingFailed
    with the end of the output when the second run does not get through.
    """
    differences = foresee(facts, root)
    for line in differences or ["nothing differs from the recorded environment"]:
        said(line)
    folder = home.absolute() / "reproductions" / facts.digest[:12]
    if (folder / MADE).exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    threads = facts.environment.threads
    env = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    began = time.monotonic()
    with _checkout(facts, root) as code:
        restored = restore(facts, code, folder / "inputs", root=root.absolute(), store=store)
        for line in restored.said:
            said(line)
        order = {"path": facts.recipe.path, "digest": facts.digest, "recipe": restored.recipe}
        files.write_json(folder / ORDER, order)
        done = subprocess.run(
            [sys.executable, "-m", "trainyard.reproduction", str(folder)],
            cwd=code,
            env=env | restored.env | {"PYTHONPATH": str(code)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not (folder / MADE).exists():
        raise TrainingFailed(
            f"the second run of {facts.name}@{facts.digest[:12]} ended with:\n{done.stderr[-2000:]}"
        )
    made = Made.model_validate(files.read_json(folder / MADE))
    if made.data_digest != facts.data.digest:
        differences.append(f"data: {facts.data.digest[:12]} then, {made.data_digest[:12]} here")
    return Reproduction(
        name=facts.name,
        digest=facts.digest,
        made=made,
        differences=tuple(differences),
        outside=() if made.digest == facts.digest else tuple(outside(facts, made.scores)),
        seconds=time.monotonic() - began,
    )


class Restored(Frozen):
    recipe: dict[str, Any]
    """With the places where the files are now."""
    env: dict[str, str]
    """What the program needs beside this process's environment."""
    said: tuple[str, ...]


def restore(
    facts: Lineage, code: Path, folder: Path, *, root: Path, store: Store | None
) -> Restored:
    """See to it that every recorded input is there by its sha256: from `root` or from the archive.

    What the checkout `code` lacks, or has with other content, is put where the recipe looks for it.
    Without a checkout of its own, and for remote places, it comes into `folder` and the recipe is
    told so. A hub's base model comes into a cache as the hub's client lays it out.
    """
    recipe = copy.deepcopy(facts.recipe.resolved)
    said: list[str] = []
    env: dict[str, str] = {}
    places: dict[tuple[str, str], list[InputFile]] = defaultdict(list)
    for file in facts.inputs:
        places[file.role, file.source].append(file)
    for number, ((role, source), found) in enumerate(sorted(places.items())):
        if all((place := _place(file)) and _has(code / place, file) for file in found):
            continue
        hub = HUB.fullmatch(source) if role == "base model" else None
        if role == "base model" and source.startswith("s3://"):
            said.append(f"base model: {source} comes from its bucket again")
            continue
        if hub and not any(file.archived for file in found):
            said.append(f"base model: {source} has to be in this machine's hub cache")
            continue
        if hub:
            env["HF_HUB_CACHE"] = str(folder / "hub")
            target = _hub_snapshot(folder / "hub", source, facts.base_model.revision)
            targets = [target / file.name for file in found]
        elif code != root and all(_is_inside(file) for file in found):
            targets = [code / str(_place(file)) for file in found]
        elif role == "base model":
            # the folder's name is part of the adapter's configuration, and so of its digest
            raise NotFound(f"{source} is not there with the recorded content; put it back")
        else:
            targets = [folder / str(number) / _below(file) for file in found]
            _point(recipe, role, source, targets[0] if len(found) == 1 else folder / str(number))
        for file, target in zip(found, targets, strict=True):
            _fetch(file, target, root, store)
        said.append(f"{role}: {source}, {len(found)} files, by sha256")
    return Restored(recipe=recipe, env=env, said=tuple(said))


def _fetch(file: InputFile, target: Path, root: Path, store: Store | None) -> None:
    place = _place(file)
    if _has(target, file):
        return
    if place and _has(root / place, file):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(root / place, target)
    elif store is None:
        raise NotFound(f"{file.name} (sha256 {file.sha256[:12]}) is not in {root.absolute()}")
    else:
        inputs.bring(store, file, target)


def _has(place: Path, file: InputFile) -> bool:
    return place.is_file() and files.digest_file(place) == file.sha256


def _place(file: InputFile) -> Path | None:
    """Return where the recipe looks for the file; None for a place that is not on a disk."""
    if "://" in file.source:
        return None
    return Path(file.source, file.name) if file.role == "base model" else Path(file.name)


def _is_inside(file: InputFile) -> bool:
    place = _place(file)
    return place is not None and not place.is_absolute() and ".." not in place.parts


def _below(file: InputFile) -> str:
    """Return the file's place below its source; its own name for a source that is one file."""
    rest = file.name.removeprefix(file.source.rstrip("/")).lstrip("/")
    safe = rest if rest != file.name and ".." not in rest.split("/") else ""
    return safe or Path(file.name).name


def _point(recipe: dict[str, Any], role: str, source: str, place: Path) -> None:
    """Make the recipe read the source from `place`."""
    if role == "eval set":
        for suite in recipe["evaluate"]["suites"]:
            if suite["data"] == source:
                suite["data"] = str(place)
        return
    sources = recipe["data"]["train"]
    for number, given in enumerate(sources):
        if given == source:
            sources[number] = str(place)
        elif isinstance(given, dict) and given["path"] == source:
            sources[number] = given | {"path": str(place)}


def _hub_snapshot(cache: Path, source: str, revision: str) -> Path:
    found = HUB.fullmatch(source)
    assert found is not None
    repository = cache / f"models--{found['repository'].replace('/', '--')}"
    files.write_text(repository / "refs" / (found["revision"] or "main"), revision)
    return repository / "snapshots" / revision


def outside(facts: Lineage, scores: Mapping[str, float]) -> Iterator[str]:
    """Name the scores that lie outside the recorded intervals, or that nothing was recorded for."""
    compared = 0
    for name, score in sorted(scores.items()):
        found = facts.intervals.get(name)
        if found is None or name.endswith("latency_ms"):  # a time is the machine's, not the model's
            continue
        compared += 1
        if not found.low <= score <= found.high:
            yield f"{name} is {score:.4g}, recorded [{found.low:.4g}, {found.high:.4g}]"
    if not compared:
        yield "the adapters differ, and no score has a recorded interval to compare with"


def _has_commit(commit: str, root: Path) -> bool:
    return _git(root, "cat-file", "-e", f"{commit}^{{commit}}") == 0


def _restorable(git: lineage.Git) -> bool:
    return not git.untracked and "***" not in git.diff and len(git.diff) < 1 << 20


def _git(folder: Path, *arguments: str, given: str | None = None) -> int:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, input=given, text=True, capture_output=True, check=False)
    return done.returncode


@contextmanager
def _checkout(facts: Lineage, root: Path) -> Iterator[Path]:
    """Give the recorded code in a folder of its own; the code here when it cannot be had."""
    git = facts.git
    if git is None or not _has_commit(git.commit, root):
        yield root.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        code = Path(scratch) / "code"
        if _git(root, "worktree", "add", "--detach", str(code), git.commit):
            raise InputError(f"{git.commit[:12]} cannot be checked out beside {root.absolute()}")
        try:
            if git.diff and _restorable(git) and _git(code, "apply", given=git.diff):
                raise InputError(f"the recorded changes do not fit on {git.commit[:12]}")
            yield code
        finally:
            _git(root, "worktree", "remove", "--force", str(code))


def _run(folder: Path) -> None:
    from trainyard.release import data, evaluation, training  # noqa: PLC0415  (the program's own)
    from trainyard.release.job import Job  # noqa: PLC0415
    from trainyard.release.version import flat_scores  # noqa: PLC0415

    order = files.read_json(folder / ORDER)
    recipe = Recipe.model_validate(order["recipe"])
    job = Job(recipe=recipe, recipe_path=order["path"], run_id="again", home=folder / "home")
    job.folder.mkdir(parents=True, exist_ok=True)

    def quiet(*_: object) -> None: ...

    checked = data.run(job, quiet)
    trained = training.run(job, checked, quiet)
    scores = {}
    if trained.result.digest != order["digest"]:
        scores = flat_scores(evaluation.run(job, trained, None, quiet))
    made = Made(data_digest=checked.verdict.digest, digest=trained.result.digest, scores=scores)
    files.write_json(folder / MADE, made.model_dump())


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
