"""A version: one folder that holds a served adapter with everything that explains it.

    models/<name>/sha256-<digest>/
        adapter/            weights, tokenizer, chat template: what is served, named by digest
        evaluation/         answers, scores, judgements
        gate.json           the decision
        lineage.json        where it comes from
        attestation.json    the same as an in-toto statement
        README.md           model card
        signature.json      when the recipe names keys
        manifest.json       sha256 and size of every file above; written last

Without its manifest a version does not exist.
"""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trainyard import files
from trainyard.errors import InputError, NotFound, Refused

MANIFEST = "manifest.json"
ADAPTER = "adapter"
SIGNATURE = "signature.json"
SCHEMA = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int
    """Bytes."""


class Manifest(BaseModel):
    """What a finished folder holds."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA
    name: str
    digest: str
    """sha256 over the sorted (path, sha256) pairs of `adapter/`."""
    created: str
    files: dict[str, FileEntry]


class Version(BaseModel):
    """A finished version in a folder on this machine."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    folder: Path

    @property
    def served_name(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    @property
    def key(self) -> str:
        return key(self.name, self.digest)

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER


def key(name: str, digest: str) -> str:
    """Return the place of a version below an archive or a home folder."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"model name {name!r} cannot be stored; use letters, digits, dot, dash and underscore, "
            "at most 100, beginning with a letter or digit"
        )
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"digest {digest!r} is not a sha256 in 64 hexadecimal digits")
    return f"models/{name}/sha256-{digest}"


def digest_of(adapter: Path) -> str:
    """Return the digest of what is served: every file of the adapter, by path and content."""
    if not adapter.is_dir() or not any(adapter.iterdir()):
        raise InputError(f"{adapter} holds no adapter")
    return files.digest_tree(adapter)


def assemble(
    root: Path,
    name: str,
    digest: str,
    adapter: Path,
    parts: dict[str, Path | str],
    sign: Callable[[Path], None] | None = None,
) -> Version:
    """Build the version's folder below `root` from the adapter and `parts`, the manifest last.

    `parts` maps a path inside the version to a file or folder to copy, or to text to write. A
    finished version is never written again: what is there is returned.
    Raises Refused when the adapter is not the one that `digest` was computed from.
    """
    folder = root / key(name, digest)
    version = Version(name=name, digest=digest, folder=folder)
    if (folder / MANIFEST).exists():
        verify(folder)
        return version
    if (found := digest_of(adapter)) != digest:
        raise Refused(
            f"{adapter} has digest {found[:12]}, but {digest[:12]} was evaluated: it changed "
            "since. Run the release again"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files.link(adapter, folder / ADAPTER)
    for place, content in parts.items():
        target = folder / place
        if isinstance(content, str):
            files.write_text(target, content)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.link(content, target)
    if sign:
        sign(folder)
    seal(folder, name, digest)
    return version


def seal(folder: Path, name: str, digest: str) -> Manifest:
    """Write the manifest over everything in `folder`; from here on it is finished."""
    entries = {
        place: FileEntry(sha256=sha256, size=(folder / place).stat().st_size)
        for place, sha256 in files.digest_files(folder).items()
        if place != MANIFEST
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(name=name, digest=digest, created=created, files=entries)
    files.write_json(folder / MANIFEST, manifest.model_dump())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Raises NotFound without a manifest, InputError for one that cannot be read."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{folder} has no {MANIFEST}, so it holds no finished version") from None


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Raises InputError; `where` names the manifest in the message."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where} is no manifest: {place} {first['msg']}".rstrip()) from None
    if manifest.schema_version > SCHEMA:
        raise InputError(
            f"{where} has schema {manifest.schema_version} and this trainyard reads up to "
            f"{SCHEMA}; update trainyard"
        )
    for place in manifest.files:
        if place.startswith("/") or ".." in place.split("/") or "\\" in place:
            raise Refused(f"{where} names {place!r}, a path outside its own folder")
    return manifest


def verify(folder: Path) -> Manifest:
    """Compare every byte with the manifest.

    Raises Refused naming each file that was changed, removed or added, NotFound without a manifest.
    """
    manifest = read_manifest(folder)
    problems = list(_differences(folder, manifest))
    found = {
        place.removeprefix(f"{ADAPTER}/"): entry.sha256
        for place, entry in manifest.files.items()
        if place.startswith(f"{ADAPTER}/")
    }
    if not problems and files.digest_json(sorted(found.items())) != manifest.digest:
        problems.append(f"{MANIFEST}: its digest is not that of its {ADAPTER}/")
    if folder.name.startswith("sha256-") and folder.name != f"sha256-{manifest.digest}":
        problems.append(
            f"{MANIFEST}: written for {manifest.digest[:12]}, found in {folder.name[:19]}"
        )
    if problems:
        raise Refused(f"{folder} is not what was archived: {'; '.join(problems)}")
    return manifest


def _differences(folder: Path, manifest: Manifest) -> Any:
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for place in sorted(there - set(manifest.files) - {MANIFEST}):
        yield f"{place} was added"
    for place, entry in manifest.files.items():
        if place not in there:
            yield f"{place} is missing"
        elif (folder / place).is_symlink():
            yield f"{place} is a link, not a file"
        elif (size := (folder / place).stat().st_size) != entry.size:
            yield f"{place} has {size} bytes instead of {entry.size}"
        elif files.digest_file(folder / place) != entry.sha256:
            yield f"{place} was changed"
