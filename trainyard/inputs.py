"""The files that a release read, kept in the archive under their sha256 and brought back by it.

Two versions that read the same file share it there. Without them a version can still be verified
and served; with them it can be made again on a machine that has nothing but the archive.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainyard import base_model, files
from trainyard.base_model import BaseModel
from trainyard.data.locate import locate
from trainyard.errors import NotFound, Refused
from trainyard.lineage import InputFile
from trainyard.recipe import Recipe
from trainyard.recipe.data import SourceSpec
from trainyard.storage import Store

PREFIX = "inputs/"
HELD = "held/sha256-"
"""Beginning of a file's place below the home folder, until the archive has it."""


class Input(NamedTuple):
    file: InputFile
    path: Path
    """Where it lies now."""


def find(recipe: Recipe, base: BaseModel, scratch: Path) -> list[Input]:
    """Return every file that a release of `recipe` reads; remote ones come into `scratch`."""
    keep = recipe.register.keep_inputs
    suites = [SourceSpec(path=path) for path in recipe.evaluate.eval_sets]
    found = [*_sources("data", recipe.data.sources, scratch, keep != "none")]
    found += _sources("eval set", suites, scratch, keep != "none")
    for path in sorted(base.path.iterdir()):
        if path.is_file() and path.suffix in base_model.COUNTED:
            found.append(_input("base model", base.ref, path.name, path, keep == "all"))
    return found


def key(sha256: str) -> str:
    """Return the place of a file below an archive."""
    return f"{PREFIX}sha256-{sha256}"


def hold(home: Path, inputs: Sequence[Input]) -> list[str]:
    """Set aside, in the home folder, what the archive is to keep; return the digests."""
    held = []
    for file, path in inputs:
        if file.archived:
            place = home / f"{HELD}{file.sha256}"
            place.parent.mkdir(parents=True, exist_ok=True)
            files.link(path.resolve(), place)  # a hub cache holds links
            held.append(file.sha256)
    return held


def archive(store: Store, home: Path, held: Sequence[str]) -> None:
    """Put what was set aside into the archive. Raises Refused for a file that changed since."""
    for sha256 in held:
        path = home / f"{HELD}{sha256}"
        if path.exists():  # of two versions, or of two attempts, one was first
            if not store.has(key(sha256), path.stat().st_size, sha256):
                store.put(key(sha256), path, sha256, lambda _: None)
            path.unlink(missing_ok=True)


def bring(store: Store, file: InputFile, target: Path) -> None:
    """Bring a file back, every byte checked. Raises NotFound when the archive does not have it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    half = target.with_name(f".{target.name}.half")
    try:
        with half.open("wb") as writer:
            for chunk in store.chunks(key(file.sha256), file.size):
                digest.update(chunk)
                writer.write(chunk)
    except NotFound:
        half.unlink(missing_ok=True)
        raise NotFound(
            f"{file.name} (sha256 {file.sha256[:12]}) is not in {store.url}: its release kept "
            "digests only, or it was swept"
        ) from None
    if digest.hexdigest() != file.sha256:
        half.unlink()
        raise Refused(f"{store.url}/{key(file.sha256)} was changed: its sha256 is another")
    half.replace(target)


def _sources(role: str, specs: Sequence[SourceSpec], scratch: Path, kept: bool) -> Iterator[Input]:
    for number, spec in enumerate(specs):
        for found in locate(spec, scratch / f"{role}-{number}"):
            yield _input(role, spec.path, found.name, found.path, kept, found.dvc_md5)


def _input(
    role: str, source: str, name: str, path: Path, archived: bool, dvc_md5: str | None = None
) -> Input:
    facts = {"role": role, "source": source, "name": name, "archived": archived}
    facts |= {"sha256": files.digest_file(path), "size": path.stat().st_size, "dvc_md5": dvc_md5}
    return Input(InputFile.model_validate(facts), path)
