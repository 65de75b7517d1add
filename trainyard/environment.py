"""Where a release runs and where its version serves: `deployments/environments/<name>.yaml`."""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

from trainyard.errors import InputError
from trainyard.gpu_pools import GpuPool, suitable
from trainyard.recipe.approval import Place
from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import DeploySpec
from trainyard.recipe.load import load
from trainyard.recipe.resources import ResourcesSpec

FOLDER = Path("deployments/environments")
HERE: Literal["here"] = "here"


class ChunkRunner(Frozen):
    """What runs the chunks of a data check."""

    runner: Literal["here", "threads", "processes", "dask", "ray"] = HERE
    """here: processes of the check itself. Else a Prefect task runner; dask and ray need
    `prefect-dask` or `prefect-ray` where the release runs."""

    workers: PositiveInt | None = None
    """Threads or processes on this machine; by default one per core."""

    address: str | None = None
    """Of a Dask scheduler or a Ray head that runs already. Its workers share this working folder
    under the same path, and have this code: they are sent paths, never rows."""

    @model_validator(mode="after")
    def _either_here_or_there(self) -> "ChunkRunner":
        if self.address and self.runner not in ("dask", "ray"):
            raise ValueError(f"{self.runner} runs on this machine: leave out address")
        if self.address and self.workers:
            raise ValueError("a cluster that runs already has its size: leave out workers")
        return self


class Environment(Frozen):
    data: ChunkRunner = ChunkRunner()
    """What runs the chunks of the data check."""

    training: str | tuple[GpuPool, ...] = HERE
    """`here`, the `flow/deployment` that trains, or several to choose from by `resources`."""

    evaluation: str | tuple[GpuPool, ...] = HERE
    """`here`, the `flow/deployment` that evaluates, or several to choose from by `resources`."""

    serves: Place = "production"
    """What a version that gets traffic here becomes: the registry's alias of that name."""

    deploy: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe's `deploy` that have other values here, as {port: 8701}."""

    def home(self, home: Path) -> Path:
        """Where the traffic of this place is on record; of production in the home folder itself."""
        return home if self.serves == "production" else home / "environments" / self.serves

    def why_too_few_nodes(self, need: ResourcesSpec) -> str | None:
        """Say why so many machines cannot train together here, or None."""
        if need.nodes == 1:
            return None
        if isinstance(self.training, str):
            return (
                f"resources.nodes is {need.nodes} and training here ({self.training}) has one "
                "machine: name Kubernetes pools under `training` of the environment, each with its "
                "`nodes`"
            )
        try:
            suitable(self.training, need)
        except InputError as error:
            return f"resources.nodes is {need.nodes}: {error}"
        return None

    def deploy_of(self, spec: DeploySpec) -> DeploySpec:
        """Raises InputError for keys or values that `deploy` does not take."""
        try:
            return DeploySpec.model_validate(spec.model_dump() | self.deploy)
        except ValidationError as error:
            first = error.errors()[0]
            place = "".join(f"{part}: " for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{FOLDER}, deploy of {self.serves}: {place}{said}") from None


PRODUCTION = Environment()
"""One machine: everything in one process, and what passes serves everybody."""


def homes(home: Path) -> dict[str, Path]:
    """Return place -> folder of every place that has traffic on record."""
    others = {path.name: path for path in sorted((home / "environments").glob("*/"))}
    return {"production": home} | others


def read_environment(name: str) -> Environment:
    """Raises InputError naming the environments there are."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no environment {name!r} in {FOLDER}: there are {', '.join(known)}{hint}")
    return load(FOLDER / f"{name}.yaml", Environment)
