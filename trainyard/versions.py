"""What a person asks about versions from the command line: is it whole, and put the former back."""

import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from trainyard import (
    approval,
    attestation,
    files,
    lineage,
    reproduction,
    rollout,
    secrets,
    storage,
)
from trainyard.errors import InputError, NotFound
from trainyard.lineage import Lineage
from trainyard.recipe import Recipe
from trainyard.recipe.approval import ApprovalSpec
from trainyard.recipe.base import Frozen
from trainyard.registry import VersionRecord
from trainyard.registry.mirror import open_registries
from trainyard.release.champion import fetch
from trainyard.release.job import Job
from trainyard.release.version import Registered
from trainyard.reproduction import Reproduction
from trainyard.rollout import Rollback

SERVED_HEADER = "x-trainyard-version"


class Verified(Frozen):
    name: str
    digest: str
    folder: Path
    files: int
    verdict: str

    def as_text(self) -> str:
        return (
            f"{self.name}@{self.digest[:12]} is whole: {self.files} files as archived, "
            f"gates {self.verdict}, in {self.folder}"
        )


def verify(version: str, home: Path) -> Verified:
    """Check a version's folder, or one in the archive by `NAME@REF`, every byte.

    Raises Refused naming each file that differs, NotFound for a version that is not there.
    """
    folder = Path(version)
    if folder.is_dir():
        manifest = attestation.check(folder)
    else:
        recipe, record, folder = _fetched(*named(version), home)
        manifest = attestation.check(folder, record.manifest_sha256, recipe.register.sign)
    return Verified(
        name=manifest.name,
        digest=manifest.digest,
        folder=folder,
        files=len(manifest.files),
        verdict=files.read_json(folder / "gate.json")["verdict"],
    )


def rollback(name: str, home: Path, *, why: str, who: str = "command line") -> Rollback:
    """Give the former champion all traffic, then the alias."""
    recipe = recipe_of(name, home)
    target = rollout.open_target(recipe.deploy, name, home)
    done = rollout.rollback(target, why)
    registry = open_registries(recipe.register, home)
    digest = registry.resolve(name, done.back_to).digest
    registry.set_alias(name, "production", digest, who=who, why=why)  # `previous` stays
    return done


def reproduce(version: str, home: Path, said: Callable[[str], None]) -> Reproduction:
    """Make a version again, from its lineage and the archive alone, and compare.

    `said` hears every difference before the start.
    """
    folder, store = Path(version), None
    if folder.is_dir():
        facts = lineage.read(folder / lineage.FILE)
        spec = Recipe.model_validate(facts.recipe.resolved).register
    else:
        recipe, _, folder = _fetched(*named(version), home)
        facts, spec = lineage.read(folder / lineage.FILE), recipe.register
    store = storage.open_store(spec.archive, home)
    return reproduction.reproduce(facts, home, store=store, said=said)


def origin(version: str, home: Path) -> Lineage:
    """Return where a version comes from: of a folder, or by `NAME@REF`.

    An approval that was given after the version was sealed is in the home folder.
    """
    folder = Path(version)
    if not folder.is_dir():
        folder = _fetched(*named(version), home)[2]
    facts = lineage.read(folder / lineage.FILE)
    given = approval.granted(home, facts.name, facts.digest)
    if facts.approval is not None or given is None:
        return facts
    said = lineage.Approval(who=given.who, why=given.why, time=given.time)
    return facts.model_copy(update={"approval": said})


def served_by(headers: str, home: Path) -> str:
    """Return `NAME@DIGEST` of the version that gave an answer, from the answer's headers.

    `headers` is a file, or `-` for standard input, as `curl -D` writes it. Raises NotFound without
    the header that every answer of a gateway has, or for a version of no model in `home`.
    """
    text = sys.stdin.read() if headers == "-" else Path(headers).read_text(encoding="utf-8")
    pairs = [line.strip(" <\r").partition(":") for line in text.splitlines()]
    digests = [value.strip() for name, _, value in pairs if name.lower() == SERVED_HEADER]
    if not digests:
        raise NotFound(f"{headers} has no header {SERVED_HEADER}: did a gateway answer?")
    for name in models(home):
        registry = open_registries(recipe_of(name, home).register, home)
        if any(record.digest == digests[-1] for record in registry.versions(name)):
            return f"{name}@{digests[-1]}"
    raise NotFound(f"no model of {home} has a version {digests[-1][:12]}")


def models(home: Path) -> list[str]:
    """Return the names of the models that were released from `home`."""
    found = (home / "runs").glob("*/recipe.json")
    return sorted({str(files.read_json(path)["name"]) for path in found})


def keep(version: str, home: Path, why: str | None) -> VersionRecord:
    """Tag a version so that no sweep takes it; with `why` None, remove the tag."""
    name, ref = named(version)
    registry = open_registries(recipe_of(name, home).register, home)
    record = registry.resolve(name, ref)
    registry.keep(name, record.digest, why)
    return record


def to_serve(name: str, ref: str, home: Path) -> tuple[Job, Registered]:
    """Find a registered version by alias or digest, bring it here, and check all of it.

    It needs an approval where the model's newest recipe says so, or the one that it was made from.
    Raises Refused for one that was altered or did not pass its gates.
    """
    recipe, record, folder = _fetched(name, ref, home)
    attestation.check(folder, record.manifest_sha256, recipe.register.sign)
    own = lineage.read(folder / lineage.FILE).recipe.resolved["deploy"].get("approval")
    if own is not None and recipe.deploy.approval is None:
        asked = ApprovalSpec.model_validate(own)
        deploy = recipe.deploy.model_copy(update={"approval": asked})
        recipe = recipe.model_copy(update={"deploy": deploy})
    job = Job(recipe=recipe, recipe_path=f"{name}@{ref}", run_id=record.run_id, home=home)
    registered = Registered(
        name=name,
        digest=record.digest,
        folder=folder,
        url=record.url,
        manifest_sha256=record.manifest_sha256,
        skipped=True,
    )
    return job, registered


def named(version: str, ref: str = "production") -> tuple[str, str]:
    """Divide `NAME@REF`; `ref` is meant where none is written."""
    name, _, written = version.partition("@")
    return name, written or ref


def _fetched(name: str, ref: str, home: Path) -> tuple[Recipe, VersionRecord, Path]:
    """Find a version in its recipe's registry and bring it here from the archive."""
    recipe = recipe_of(name, home)
    record = open_registries(recipe.register, home).resolve(name, ref)
    return recipe, record, fetch(recipe, record, home)


def recipe_of(name: str, home: Path) -> Recipe:
    """Return the recipe of the model's newest run: it says where its registry and archive are."""
    if not name:
        raise InputError("a version is named as NAME@DIGEST, NAME@ALIAS, or by its folder")
    runs = sorted((home / "runs").glob(f"{name}-*/recipe.json"), key=lambda p: p.stat().st_mtime)
    for path in reversed(runs):
        try:
            recipe = Recipe.model_validate(files.read_json(path))
        except ValidationError as error:
            raise InputError(
                f"{path} was written by another version of trainyard and cannot be read: "
                f"{error.errors()[0]['msg']}; release {name} again"
            ) from None
        if recipe.name == name:
            secrets.know(recipe.model_dump())
            return recipe
    raise NotFound(f"no release of {name} in {home}; `trainyard status` lists what there is")
