"""The version that serves everybody now, brought to this machine and checked."""

from pathlib import Path

from trainyard import base_model, files, storage
from trainyard.errors import NotFound
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.register import MlflowRegistry
from trainyard.registry import VersionRecord, open_registry
from trainyard.version import ADAPTER, key


class Champion(Frozen):
    name: str
    digest: str
    folder: Path
    """The version's folder on this machine."""
    base_ref: str
    base_digest: str
    trust_remote_code: bool

    @property
    def served_name(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    def base(self, home: Path) -> Path | None:
        """Return the base that it was trained on; None when that name has other weights by now."""
        found = base_model.resolve(self.base_ref, home, trust_remote_code=self.trust_remote_code)
        return found.path if found.digest == self.base_digest else None


def find_champion(recipe: Recipe, home: Path) -> Champion | None:
    """Return the champion of the recipe's model; None before the first release."""
    spec = recipe.register.registry
    if isinstance(spec, MlflowRegistry) and spec.uri is None and not (home / "mlflow.db").exists():
        return None  # opening it would make it: seconds, and a file that a plan must not leave
    registry = open_registry(spec, home)  # a mirror decides nothing
    try:
        record = registry.resolve(recipe.name, "production")
    except NotFound:
        return None
    folder = fetch(recipe, record, home)
    lineage = files.read_json(folder / "lineage.json")
    return Champion(
        name=record.name,
        digest=record.digest,
        folder=folder,
        base_ref=lineage["base_model"]["ref"],
        base_digest=lineage["base_model"]["digest"],
        trust_remote_code=lineage["recipe"]["resolved"]["trust_remote_code"],
    )


def rival_of(champion: Champion | None, candidate: str) -> Champion | None:
    """Return the champion; None when the candidate is that very version."""
    return champion if champion and champion.digest != candidate else None


def fetch(recipe: Recipe, record: VersionRecord, home: Path) -> Path:
    """Bring a version from the archive into `<home>/versions`, every byte checked."""
    place = key(record.name, record.digest)
    folder = home / "versions" / place
    storage.get_tree(storage.open_store(recipe.register.archive, home), place, folder)
    return folder
