"""Which recipes a change touches: their own file, or a file that they point at."""

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from trainyard.recipe import Recipe

THE_RECIPE = "the recipe"


def why_touched(path: str, recipe: Recipe | None, changed: Collection[str]) -> str | None:
    """Say what touched the recipe; None when nothing did. `recipe` is None where it is broken."""
    if path in changed:
        return THE_RECIPE
    return next(iter(touching(recipe, changed)), None)


def touching(recipe: Recipe | None, changed: Collection[str]) -> list[str]:
    """Return the changed files that the recipe points at, sorted."""
    points_at = set(pointers(recipe)) if recipe else set()
    return [file for file in sorted(changed) if _hit(file, points_at)]


def pointers(recipe: Recipe) -> Iterator[str]:
    """Yield everything in the recipe that may name a file, a folder or a pattern."""
    yield from (source.path for source in recipe.data.sources)
    yield recipe.base_model
    yield from (text for text in _texts(recipe.model_dump(mode="json")) if "/" in text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _hit(file: str, points_at: Collection[str]) -> bool:
    named = {file, file.removesuffix(".dvc")}  # a DVC pointer stands for its file
    folders = {f"{parent}" for parent in PurePosixPath(file).parents} - {"."}
    for point in points_at:
        plain = point.removeprefix("./").rstrip("/")
        if plain in named or plain in folders:
            return True
        if any(c in plain for c in "*?[") and fnmatchcase(file.removesuffix(".dvc"), plain):
            return True
    return False
