"""What may be deleted: everything that nothing kept needs and that is old enough.

Mark and sweep. Roots are versions with an alias or with traffic, and whatever is young. A version
keeps its run and the stages that made its data and its adapter. Registered versions stay in the
archive; only trees that no registry names are taken from it.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainyard import files, storage, version
from trainyard.lineage import FILE as LINEAGE
from trainyard.stage import MANIFEST as STAGE_MANIFEST

KEEP = timedelta(days=30)
"""Younger items are kept whatever needs them."""

_TRASH = "trash"


class Item(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    size: int
    """Bytes on disk, shared ones counted with each item."""
    modified: datetime
    needs: frozenset[str] = frozenset()
    """Items that this one is worth nothing without."""


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
    """Return the runs, stages and local versions of a home folder."""
    items: dict[str, Item] = {}
    made_by: dict[str, set[str]] = defaultdict(set)
    for manifest in (home / "stages").glob(f"*/*/{STAGE_MANIFEST}"):
        name = manifest.parent.relative_to(home).as_posix()
        items[name] = _item(home, name)
        made_by[str(files.read_json(manifest)["result"].get("digest"))].add(name)
    for folder in (home / "runs").glob("*/"):
        name = folder.relative_to(home).as_posix()
        items[name] = _item(home, name)
    for manifest in (home / "versions").glob(f"models/*/sha256-*/{version.MANIFEST}"):
        name = manifest.parent.relative_to(home).as_posix()
        needs = made_by[version.read_manifest(manifest.parent).digest].copy()
        origin = manifest.parent / LINEAGE
        if origin.exists():
            facts = files.read_json(origin)
            needs |= {f"runs/{facts['run_id']}"} | made_by[facts["data"]["digest"]]
        items[name] = _item(home, name, needs)
    return items


def local_name(name: str, digest: str) -> str:
    """Return the item of a version's copy in the home folder."""
    return f"versions/{version.key(name, digest)}"


def delete_from_home(home: Path, item: Item) -> None:
    """Delete at once for every reader: moved aside first, then removed."""
    empty_trash(home)
    (home / _TRASH).mkdir(exist_ok=True)
    aside = home / _TRASH / item.id.replace("/", "_")
    (home / item.id).rename(aside)
    shutil.rmtree(aside)


def empty_trash(home: Path) -> None:
    """Finish what an interrupted deletion left."""
    shutil.rmtree(home / _TRASH, ignore_errors=True)


def in_archive(store: storage.Store, name: str, registered: Collection[str]) -> dict[str, Item]:
    """Return the finished trees of a model that no registry names, by key."""
    found: dict[str, Item] = {}
    sizes: dict[str, int] = defaultdict(int)
    newest: dict[str, datetime] = {}
    for entry in store.entries(f"models/{name}/"):
        tree = "/".join(entry.key.split("/")[:3])
        sizes[tree] += entry.size
        newest[tree] = max(newest.get(tree, entry.modified), entry.modified)
    for digest in storage.list_versions(store, name):
        tree = version.key(name, digest)
        if digest not in registered:
            found[tree] = Item(id=tree, size=sizes[tree], modified=newest[tree])
    return found


def sweep(
    items: Mapping[str, Item],
    roots: Iterable[str],
    delete: Callable[[Item], object] | None,
    keep: timedelta = KEEP,
) -> list[Item]:
    """Delete what may go and return it; with `delete` None, only say what would go."""
    going = sweepable(items, roots, datetime.now(UTC), keep)
    if delete:
        for item in going:
            delete(item)
    return going


def _item(home: Path, name: str, needs: Iterable[str] = ()) -> Item:
    facts = [path.stat() for path in (home / name).rglob("*") if path.is_file()]
    newest = max((fact.st_mtime for fact in facts), default=(home / name).stat().st_mtime)
    return Item(
        id=name,
        size=sum(fact.st_size for fact in facts),
        modified=datetime.fromtimestamp(newest, UTC),
        needs=frozenset(needs),
    )
