"""Make a version again from what its lineage says, and compare the two.

The commit is checked out beside the working tree and its own code runs there, with the recorded
recipe and number of threads. Every difference that is known beforehand is said before it starts.
Also the program that runs in the checkout: `python -m trainyard.reproduction FOLDER`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainyard import files, lineage
from trainyard.errors import InputError, TrainingFailed
from trainyard.lineage import Lineage
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen

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
    """Scores that lie outside the recorded intervals."""

    @property
    def identical(self) -> bool:
        return self.made.digest == self.digest

    @property
    def holds(self) -> bool:
        return self.identical or not self.outside

    def as_text(self) -> str:
        if self.identical:
            return f"{self.name}@{self.digest[:12]} was made again, byte by byte"
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


def reproduce(facts: Lineage, home: Path, root: Path = Path()) -> Reproduction:
    """Train again in `home / "reproductions"` and compare; evaluates only if the adapters differ.

    Raises TrainingFailed with the end of the output when the second run does not get through.
    """
    said = foresee(facts, root)
    folder = home.absolute() / "reproductions" / facts.digest[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MADE).unlink(missing_ok=True)
    order = {"recipe": facts.recipe.resolved, "path": facts.recipe.path, "digest": facts.digest}
    files.write_json(folder / ORDER, order)
    threads = (
        {"OMP_NUM_THREADS": str(facts.environment.threads)} if facts.environment.threads else {}
    )
    with _checkout(facts, root) as code:
        done = subprocess.run(
            [sys.executable, "-m", "trainyard.reproduction", str(folder)],
            cwd=code,
            env=os.environ | threads | {"PYTHONPATH": str(code)},
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
        said.append(f"data: {facts.data.digest[:12]} then, {made.data_digest[:12]} here")
    return Reproduction(
        name=facts.name,
        digest=facts.digest,
        made=made,
        differences=tuple(said),
        outside=tuple(outside(facts, made.scores)),
    )


def outside(facts: Lineage, scores: Mapping[str, float]) -> Iterator[str]:
    """Name the scores that lie outside the intervals that the gates recorded."""
    for gate in facts.gates:
        score = scores.get(f"{gate.get('suite')}/{gate.get('metric')}")
        low, high = gate.get("low"), gate.get("high")
        if score is None or gate.get("against"):
            continue
        if (low is not None and score < low) or (high is not None and score > high):
            yield f"{gate['suite']}/{gate['metric']} is {score:.4g}, recorded [{low}, {high}]"


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
