"""DVC pointers: the file or folder they stand for, in the work tree or in a DVC cache.

Nothing is pulled: `dvc` does that, with its remotes and its keys.
"""

import configparser
from collections.abc import Iterator
from pathlib import Path

import orjson
import yaml

from trainyard.data.located import Located
from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec

FOLDER_LIST = "*.dir"
"""No file has this name: the list of a folder lies in the cache only."""


def follow(pointer: Path, spec: SourceSpec) -> list[Located]:
    """Files with their md5; without the list of a folder, with the folder's.

    Raises InputError when the pointer is none, or what it points at is not on this machine.
    """
    if not pointer.is_file():
        raise InputError(f"{pointer} does not exist")
    try:
        out = yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]
        name, md5 = str(out["path"]), str(out["md5"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{pointer} is not a DVC pointer with outs, path and md5") from error
    target = pointer.parent / name
    if not md5.endswith(".dir"):
        return [Located(_find(pointer, target, md5), str(target), spec, md5)]
    try:
        listing = _find(pointer, target / FOLDER_LIST, md5)
    except InputError:
        if not target.is_dir():
            raise
        files = sorted(f for f in target.rglob("*") if f.is_file())
        return [Located(file, str(file), spec, md5) for file in files]
    return [
        Located(_find(pointer, target / place, each), str(target / place), spec, each)
        for place, each in _entries(listing)
    ]


def _find(pointer: Path, target: Path, md5: str) -> Path:
    if target.is_file():
        return target
    for cache in _caches(pointer):
        for stored in (cache / "files" / "md5" / md5[:2] / md5[2:], cache / md5[:2] / md5[2:]):
            if stored.is_file():
                return stored
    raise InputError(
        f"{pointer} points at {target.name} (md5 {md5}), which is neither in the work tree nor in "
        "the DVC cache: run `dvc pull`"
    )


def _entries(listing: Path) -> list[tuple[str, str]]:
    """Path and md5 of each file of a folder, from the list that DVC keeps beside its content."""
    try:
        entries = orjson.loads(listing.read_bytes())
        return sorted((str(entry["relpath"]), str(entry["md5"])) for entry in entries)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{listing} is no list of a DVC folder") from error


def _caches(pointer: Path) -> Iterator[Path]:
    """The cache of the repository that the pointer is in: `cache.dir`, else `.dvc/cache`."""
    for folder in pointer.resolve().parents:
        home = folder / ".dvc"
        if home.is_dir():
            settings = configparser.ConfigParser()
            settings.read([home / "config", home / "config.local"], encoding="utf-8")
            yield home / settings.get("cache", "dir", fallback="cache")
            return
