"""Stage `register`: the version's folder, its place in the archive, its name in the registry."""

from pathlib import Path

from trainyard import card, files, lineage, storage, version
from trainyard.errors import NotFound
from trainyard.gate import Decision
from trainyard.recipe.base import Frozen
from trainyard.registry import VersionRecord, open_registry
from trainyard.release.champion import Champion
from trainyard.release.data import Checked
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.run import Summary
from trainyard.training.job import ADAPTER


class Registered(Frozen):
    name: str
    digest: str
    folder: Path
    """The version's folder on this machine; the archive has the same."""
    url: str
    skipped: bool

    @property
    def served_name(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    @property
    def words(self) -> str:
        return f"{self.served_name} {'was registered before' if self.skipped else 'in ' + self.url}"
