"""Where the heavy stages of a release run: `deployments/environments/<name>.yaml`."""

import difflib
from pathlib import Path

from trainyard.errors import InputError
from trainyard.recipe.base import Frozen
from trainyard.recipe.load import load

FOLDER = Path("deployments/environments")
HERE = "here"


class Environment(Frozen):
    training: str = HERE
    """`here`, or the `flow/deployment` that trains."""

    evaluation: str = HERE
    """`here`, or the `flow/deployment` that evaluates."""


def read_environment(name: str) -> Environment:
    """Raises InputError naming the environments there are."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no environment {name!r} in {FOLDER}: there are {', '.join(known)}{hint}")
    return load(FOLDER / f"{name}.yaml", Environment)
