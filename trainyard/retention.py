"""What may be deleted: everything that nothing kept needs and that is old enough.

Mark and sweep over one graph of items: what lies in a home folder, in archives and in trackers. An
item names those that it is worth nothing without. `housekeeping.py` gathers them and their roots.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainyard import files, inputs, storage, version
from trainyard.errors import NotFound
from trainyard.lineage import FILE as LINEAGE
from trainyard.stage import MANIFEST as STAGE_MANIFEST

KEEP = timedelta(days=30)
"""Younger items are kept whatever needs them."""

CHECKPOINTS = "checkpoints"
CHECKOUTS = "checkouts"
CACHES = (
    "judge/*",
    "logs/*",
    f"{CHECKOUTS}/*",
    "reproductions/*",
    "held/*",
    "wandb/run-*",
    "wandb/offline-run-*",
    "wandb/cache",
    "wandb/data",
    "prefect/storage/*",
)
"""What can be made again, or is of no use once a run has ended; all of it below a home folder."""

_TRASH = "trash"


class Item(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    size: int
    """Bytes on disk, shared ones counted with each item."""
    modified: datetime
    needs: frozenset[str] = frozenset()
    """Items that this one is worth nothing without."""


def now() -> datetime:
    return datetime.now(UTC)


def reachable(items: Mapping[str, Item], roots: Iterable[str]) -> set[str]:
    """Return the roots and everything they need, directly or not."""
    found: set[str] = set()
    waiting = [root for root in roots if root in items]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [need for need in items[name].needs if need in items]
    return found


def sweepable(
    items: Mapping[str, Item], roots: Iterable[str], now: datetime, keep: timedelta = KEEP
) -> list[Item]:
    """Return what may be deleted, each item before those it needs: one may stop anywhere."""
    young = [item.id for item in items.values() if now - item.modified < keep]
    kept = reachable(items, [*roots, *young])
    return [items[name] for name in _needed_last(items) if name not in kept]


def _needed_last(items: Mapping[str, Item]) -> Iterator[str]:
    needed_by: dict[str, int] = defaultdict(int)
    for item in items.values():
        for need in item.needs & items.keys():
            needed_by[need] += 1
    ready = sorted(name for name in items if not needed_by[name])
    while ready:
        name = ready.pop()
        yield name
        for need in sorted(items[name].needs & items.keys()):
            needed_by[need] -= 1
            if not needed_by[need]:
                ready.append(need)


def in_home(home: Path) -> dict[str, Item]:
    """Return runs, stages, checkpoints, local versions and caches of a home folder, by place."""
    items = [*_caches(home)]
    made_by: dict[str, set[str]] = defaultdict(set)
    for folder in (home / "stages").glob("*/*/"):
        name = folder.relative_to(home).as_posix()
        needs: set[str] = set()
        if (folder / CHECKPOINTS).is_dir():
            items.append(_item(home, f"{name}/{CHECKPOINTS}"))
        if (folder / STAGE_MANIFEST).exists():
            made = files.read_json(folder / STAGE_MANIFEST)
            for digest in (made["result"].get("digest"), made.get("inputs", {}).get("candidate")):
                made_by[str(digest)].add(name)
        elif (folder / CHECKPOINTS).is_dir():
            needs.add(f"{name}/{CHECKPOINTS}")  # to go on from
        items.append(_item(home, name, needs))
    for folder in (home / "runs").glob("*/"):
        needs = set()
        for result in ("data/verdict.json", "train/result.json"):
            if (folder / result).exists():
                needs |= made_by[str(files.read_json(folder / result).get("digest"))]
        items.append(_item(home, folder.relative_to(home).as_posix(), needs))
    for manifest in (home / "versions").glob(f"models/*/sha256-*/{version.MANIFEST}"):
        needs = made_by[version.read_manifest(manifest.parent).digest].copy()
        origin = manifest.parent / LINEAGE
        if origin.exists():
            facts = files.read_json(origin)
            needs |= {f"runs/{facts['run_id']}"} | made_by[facts["data"]["digest"]]
        items.append(_item(home, manifest.parent.relative_to(home).as_posix(), needs))
    return {item.id: item for item in items}


def _caches(home: Path) -> Iterator[Item]:
    for pattern in CACHES:
        for path in home.glob(pattern):
            # an offline run is the only copy until it was sent
            if not path.name.startswith("offline-run-") or any(path.glob("*.wandb.synced")):
                yield _item(home, path.relative_to(home).as_posix())


def local_name(name: str, digest: str) -> str:
    """Return the item of a version's copy in the home folder."""
    return f"versions/{version.key(name, digest)}"


def delete_from_home(home: Path, item: Item) -> None:
    """Delete at once for every reader: moved aside first, then removed. Gone already is fine."""
    empty_trash(home)
    (home / _TRASH).mkdir(exist_ok=True)
    aside = home / _TRASH / item.id.replace("/", "_")
    try:
        (home / item.id).rename(aside)
    except FileNotFoundError:  # it lay in one that went before it
        return
    empty_trash(home)


def empty_trash(home: Path) -> None:
    """Finish what an interrupted deletion left."""
    shutil.rmtree(home / _TRASH, ignore_errors=True)


def in_archive(
    store: storage.Store, name: str, registered: Mapping[str, Collection[str]]
) -> dict[str, Item]:
    """Return the finished versions of a model and the inputs that they were made from, by key.

    `registered` maps digest -> what else a registered version needs, as its run in a tracker.
    """
    items: dict[str, Item] = {}
    sizes: dict[str, int] = defaultdict(int)
    newest: dict[str, datetime] = {}
    for entry in store.entries(f"models/{name}/"):
        tree = "/".join(entry.key.split("/")[:3])
        sizes[tree] += entry.size
        newest[tree] = max(newest.get(tree, entry.modified), entry.modified)
    for digest in storage.list_versions(store, name):
        tree = version.key(name, digest)
        needs = {*registered.get(digest, ()), *_inputs_of(store, tree)}
        items[tree] = Item(id=tree, size=sizes[tree], modified=newest[tree], needs=frozenset(needs))
    return items


def inputs_in_archive(store: storage.Store) -> dict[str, Item]:
    return {
        entry.key: Item(id=entry.key, size=entry.size, modified=entry.modified)
        for entry in store.entries(inputs.PREFIX)
    }


def _inputs_of(store: storage.Store, tree: str) -> Iterator[str]:
    try:
        facts = json.loads(store.read(f"{tree}/{LINEAGE}"))
    except NotFound:
        return
    for file in facts.get("inputs", ()):
        yield inputs.key(file["sha256"])


def sweep(
    items: Mapping[str, Item],
    roots: Iterable[str],
    delete: Callable[[Item], object] | None,
    keep: timedelta = KEEP,
) -> list[Item]:
    """Delete what may go and return it; with `delete` None, only say what would go."""
    going = sweepable(items, roots, now(), keep)
    if delete:
        for item in going:
            delete(item)
    return going


def _item(home: Path, name: str, needs: Iterable[str] = ()) -> Item:
    paths = [home / name, *(home / name).rglob("*")]
    facts = [path.stat() for path in paths if path.is_file()]
    newest = max((fact.st_mtime for fact in facts), default=(home / name).stat().st_mtime)
    return Item(
        id=name,
        size=sum(fact.st_size for fact in facts),
        modified=datetime.fromtimestamp(newest, UTC),
        needs=frozenset(needs),
    )
