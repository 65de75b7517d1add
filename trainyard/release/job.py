"""What a release starts from, and the records that its stages pass on: small, and JSON-able."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from trainyard import base_model, files
from trainyard.base_model import BaseModel
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import EvaluateSpec

PACKAGE = Path(__file__).parents[1]

Progress = Callable[[float, str], None]
"""Called with a share in [0, 1] and a few words."""


class Job(Frozen):
    """A release's fixed points. Travels between processes and machines that share `home`."""

    recipe: Recipe
    recipe_path: str
    run_id: str
    home: Path
    looks: tuple[dict[str, int], ...] = ()
    """Sizes of suites at each further look, while a gate is INCONCLUSIVE; the last one holds."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.home / "runs" / self.run_id

    @property
    def evaluate(self) -> EvaluateSpec:
        """What is asked at this look."""
        spec, sizes = self.recipe.evaluate, self.looks[-1] if self.looks else {}
        suites = tuple(
            suite.model_copy(update={"limit": sizes.get(suite.name, suite.limit)})
            for suite in spec.suites
        )
        return spec.model_copy(update={"suites": suites})

    @property
    def before(self) -> "Job | None":
        """The look before this one."""
        return self.model_copy(update={"looks": self.looks[:-1]}) if self.looks else None

    def base(self, *, download: bool = True) -> BaseModel:
        """Raises InputError when the base model cannot be used, Unavailable when it is away."""
        recipe = self.recipe
        return base_model.resolve(
            recipe.base_model,
            self.home,
            trust_remote_code=recipe.trust_remote_code,
            download=download,
        )


@cache
def code_digest(*parts: str) -> str:
    """Digest of the source of these files and folders of the package: an input like any other."""
    found: dict[str, str] = {}
    for part in parts:
        path = PACKAGE / part
        sources = path.rglob("*.py") if path.is_dir() else [path]
        found |= {str(s.relative_to(PACKAGE)): files.digest_file(s) for s in sources}
    return files.digest_json(found)
