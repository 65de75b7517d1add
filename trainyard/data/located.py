"""A file of a source: where it lies, and what the user calls it."""

from dataclasses import dataclass
from pathlib import Path

from trainyard.recipe.data import SourceSpec


@dataclass(frozen=True)
class Located:
    path: Path
    name: str
    """As the recipe names it, with the file appended for folders and remote places."""
    spec: SourceSpec
    dvc_md5: str | None = None
