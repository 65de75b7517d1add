"""From a passed candidate to a version that others find: folder, archive, registry, alias.

Each step can be repeated, and none begins before the one before it is whole. When the archive or
the registry is away, the version is parked in the home folder and the next run registers it.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainyard import attestation, files, inputs, storage, version
from trainyard.card import write_card
from trainyard.errors import Refused, Unavailable
from trainyard.lineage import FILE as LINEAGE
from trainyard.lineage import Git, Lineage
from trainyard.recipe.register import RegisterSpec
from trainyard.registry import VersionRecord
from trainyard.registry.mirror import open_registries

logger = logging.getLogger(__name__)


class Published(BaseModel):
    model_config = ConfigDict(frozen=True)

    record: VersionRecord
    folder: Path
    """The version on this machine; the archive has the same bytes."""
    already: bool
    """It was in archive and registry before."""


class Parked(BaseModel):
    """A version that waits for its archive or registry."""

    model_config = ConfigDict(frozen=True)

    record: VersionRecord
    folder: Path
    spec: RegisterSpec
    who: str
    why: str
    since: str
    held: tuple[str, ...] = ()
    """Digests of the inputs that the archive is to keep, set aside in the home folder."""


def publish(
    spec: RegisterSpec,
    home: Path,
    facts: Lineage,
    adapter: Path,
    evidence: Mapping[str, Path],
    *,
    who: str,
    read: Sequence[inputs.Input] = (),
    progress: storage.Progress | None = None,
) -> Published:
    """Archive and register the version, and point `candidate` at it.

    `evidence` maps places inside the version (`evaluation`, `gate.json`) to files and folders;
    `read` are the files that it was made from, of which the archive keeps those marked so.
    Raises Refused for a version that may not ship, Unavailable after parking it.
    """
    check_may_ship(spec, facts)
    store = storage.open_store(spec.archive, home)
    place = version.key(facts.name, facts.digest)
    parts: dict[str, Path | str] = {
        **evidence,
        LINEAGE: facts.model_dump_json(indent=2) + "\n",
        attestation.FILE: json.dumps(attestation.statement(facts, adapter), indent=2) + "\n",
        "README.md": write_card(facts, url=f"{store.url}/{place}"),
    }
    made = version.assemble(
        home / "versions", facts.name, facts.digest, adapter, parts, sign=_signer(spec)
    )
    sealed = version.read_manifest(made.folder)
    record = VersionRecord(
        name=facts.name,
        digest=facts.digest,
        url=f"{store.url}/{place}",
        manifest_sha256=files.digest_file(made.folder / version.MANIFEST),
        run_id=facts.run_id,
        commit=facts.git.commit if facts.git else None,
        created=sealed.created,
        verdict=facts.verdict,
        scores=facts.scores,
        parent=facts.parent,
        tracker_runs=facts.tracker_runs,
    )
    held = inputs.hold(home, read)
    return _publish(
        spec, home, record, made.folder, who=who, held=held, store=store, progress=progress
    )


def _signer(spec: RegisterSpec) -> Callable[[Path], None] | None:
    if spec.sign is None:
        return None
    from trainyard import signing  # noqa: PLC0415  (seconds, and only with keys)

    return partial(signing.sign, spec=spec.sign)


def check_may_ship(spec: RegisterSpec, facts: Lineage) -> None:
    """Raises Refused unless the gates passed and the code that made it is in a commit."""
    served = f"{facts.name}@{facts.digest[:12]}"
    if facts.verdict != "PASS":
        raise Refused(f"{served}: its gates said {facts.verdict}, so it is not registered")
    if dirty := why_dirty(spec, facts.git):
        raise Refused(f"{served}: {dirty}")


def why_dirty(spec: RegisterSpec, git: Git | None) -> str | None:
    """Say why nobody could find what makes a version now; None when its code is in a commit."""
    if spec.allow_dirty:
        return None
    if git is None:
        return (
            "made outside a git repository, so nobody could find what made it; commit it, or set "
            "`allow_dirty: true` in register"
        )
    if git.dirty:
        changed = ", ".join(sorted(git.untracked)[:3]) or "tracked files differ"
        return (
            f"the working tree has changes in no commit ({changed}); commit them, or set "
            "`allow_dirty: true` in register"
        )
    return None


def parked(home: Path) -> list[Parked]:
    """Return the versions that wait, the oldest first."""
    found = [Parked.model_validate(files.read_json(p)) for p in (home / "parked").glob("*.json")]
    return sorted(found, key=lambda waiting: waiting.since)


def catch_up(spec: RegisterSpec, home: Path, name: str) -> None:
    """Register what waits, and give the mirror of the model `name` what it missed."""
    register_parked(home)
    if spec.mirror:
        try:
            open_registries(spec, home).follow(name)
        except Unavailable as error:
            logger.warning("%s", error)


def register_parked(home: Path) -> list[Published]:
    """Try again what is parked; what still cannot be registered stays parked."""
    done = []
    for waiting in parked(home):
        try:
            done.append(
                _publish(
                    waiting.spec,
                    home,
                    waiting.record,
                    waiting.folder,
                    who=waiting.who,
                    held=waiting.held,
                )
            )
        except Unavailable as error:
            logger.warning("%s stays parked: %s", waiting.record.digest[:12], error)
    return done


def _publish(
    spec: RegisterSpec,
    home: Path,
    record: VersionRecord,
    folder: Path,
    *,
    who: str,
    held: Sequence[str] = (),
    store: storage.Store | None = None,
    progress: storage.Progress | None = None,
) -> Published:
    place = version.key(record.name, record.digest)
    ticket = home / "parked" / f"{record.name}-{record.digest[:12]}.json"
    try:
        store = store or storage.open_store(spec.archive, home)
        inputs.archive(store, home, held)  # before the version that is made from them
        kept = storage.put_tree(store, folder, place, progress)
        if kept.manifest_sha256 != record.manifest_sha256:
            # the same adapter was released before, and that version's evidence stays
            storage.get_tree(store, place, folder)
            record = record.model_copy(update={"manifest_sha256": kept.manifest_sha256})
        registry = open_registries(spec, home)
        known = {there.digest: there for there in registry.versions(record.name)}
        already = record.digest in known
        registry.register(record, folder)
        if registry.aliases(record.name).get("production") != record.digest:
            why = f"{record.verdict} in {record.run_id}"
            registry.set_alias(record.name, "candidate", record.digest, who=who, why=why)
        storage.sweep(store, f"models/{record.name}/")
    except Unavailable as error:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        waiting = Parked(
            record=record,
            folder=folder,
            spec=spec,
            who=who,
            why=str(error),
            since=now,
            held=tuple(held),
        )
        files.write_json(ticket, waiting.model_dump(mode="json"))
        raise Unavailable(
            f"{record.name}@{record.digest[:12]} is parked in {ticket}, nothing is lost: {error}. "
            "The next run registers it without training again"
        ) from error
    ticket.unlink(missing_ok=True)
    return Published(record=known.get(record.digest, record), folder=folder, already=already)
