"""The recipe that another one is compared with: of a version, or of a git commit."""

import subprocess
import tempfile
from pathlib import Path, PurePosixPath

from trainyard import lineage, versions
from trainyard.errors import InputError, NotFound
from trainyard.recipe import Recipe, read_recipe

LARGEST = 1 << 20
"""Bytes of a recipe that is no file here."""


def read_against(against: str, recipe_path: Path, home: Path) -> Recipe:
    """Return the recipe of NAME@REF, of a version's folder, or of the same path at a git commit.

    Raises NotFound when there is no such thing, or it has no such recipe.
    """
    if (Path(against) / lineage.FILE).is_file():
        return _resolved(Path(against))
    name, at, ref = against.partition("@")
    if name and at and not ref.startswith("{"):  # main@{1} is git's
        return _resolved(versions.verify(against, home).folder)
    folder = recipe_path.parent if recipe_path.parent.is_dir() else Path()
    asked = f"{against}:./{recipe_path.name}"
    done = subprocess.run(
        ["git", "-C", str(folder), "show", "--end-of-options", asked],
        capture_output=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NotFound(
            f"--against {against}: no version NAME@REF, no version's folder, and git says: "
            f"{said[0] if said else 'nothing'}"
        )
    return parse_recipe(f"{against}:{recipe_path}", done.stdout)


def parse_recipe(path: str, text: bytes) -> Recipe:
    """Read a recipe that is no file here. Raises InputError that names `path`."""
    if len(text) > LARGEST:
        raise InputError(f"{path} has {len(text)} bytes; a recipe has at most {LARGEST}")
    with tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        file = Path(scratch) / PurePosixPath(path).name
        file.write_bytes(text)
        try:
            return read_recipe(file)
        except InputError as error:
            raise InputError(str(error).replace(str(file), path)) from None


def _resolved(folder: Path) -> Recipe:
    return Recipe.model_validate(lineage.read(folder / lineage.FILE).recipe.resolved)
