"""Sweep a home folder, its archives, registries and trackers; and say when a disk fills up.

Roots are versions with an alias, kept by a tag, with traffic, in an open rollout or parked, and
runs that go on or wait for people. While a registry does not answer nobody knows what is needed,
so nothing is deleted.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from trainyard import (
    cost,
    files,
    inputs,
    process,
    registration,
    retention,
    storage,
    version,
    versions,
)
from trainyard.errors import NotFound, TrainyardError
from trainyard.recipe.base import Frozen
from trainyard.recipe.register import RegisterSpec, RegistrySpec
from trainyard.registry import delete_tracked_run, tracked_runs
from trainyard.registry.mirror import open_registries
from trainyard.retention import CHECKOUTS, Item
from trainyard.rollout.state import placed_in
from trainyard.run import Summary

logger = logging.getLogger(__name__)

FREE_SHARE = 0.1
"""Below this share of free space a disk is full for the purposes of the next release."""


class SweptItem(Frozen):
    where: str
    """The home folder, an archive's address, or a tracker."""
    id: str
    size: int
    """Bytes; 0 for a tracker's run, whose size it does not tell."""
    deleted: bool
    why_not: str | None = None


class Swept(Frozen):
    days: float
    items: list[SweptItem]
    kept: int
    """Items that are needed, or young."""
    alarm: str | None

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def as_text(self) -> str:
        done = [item for item in self.items if item.deleted]
        lines = [f"  {_shown(i.size):>10}  {i.where}  {i.id}" for i in self.items]
        lines += [f"  left: {i.id}: {i.why_not}" for i in self.items if i.why_not]
        what = "deleted" if done else "would be deleted; --delete does it"
        head = f"{len(self.items)} items, {_shown(self.size)}, {what}; {self.kept} stay"
        return "\n".join([head, *lines, *([self.alarm] if self.alarm else [])])


class Place(NamedTuple):
    """One kind of place with its items and how one is deleted there."""

    where: str
    items: dict[str, Item]
    delete: Callable[[Item], object]


def sweep(home: Path, *, days: float = 30, delete: bool = False) -> Swept:
    """Find what nothing needs and that is older than `days`; with `delete`, delete it.

    An item goes before those it needs, so that a sweep may be stopped anywhere and run again. What
    cannot be deleted is said and left. Raises Unavailable, before anything is deleted, while a
    registry or an archive is away.
    """
    cost.settle(home)
    places = list(_places(home))
    items = {name: item for place in places for name, item in place.items.items()}
    at = {name: place for place in places for name in place.items}
    going = retention.sweepable(items, set(roots(home)), retention.now(), timedelta(days=days))
    found = []
    for item in going:
        place, why_not = at[item.id], None
        if delete:
            try:
                place.delete(item)
            except (TrainyardError, OSError) as error:
                why_not = str(error)
        deleted = delete and why_not is None
        found.append(
            SweptItem(
                where=place.where, id=item.id, size=item.size, deleted=deleted, why_not=why_not
            )
        )
    return Swept(days=days, items=found, kept=len(items) - len(going), alarm=alarm(home))


def alarm(home: Path) -> str | None:
    """Say that a disk is nearly full while there is still room to do something about it."""
    there = next(
        folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists()
    )
    disk = shutil.disk_usage(there)
    if disk.free >= FREE_SHARE * disk.total:
        return None
    return (
        f"the disk of {there} has {_shown(disk.free)} of {_shown(disk.total)} left: free some, as "
        "with `trainyard sweep`, before a release fails on it"
    )


def roots(home: Path) -> Iterator[str]:
    """Yield the items that are kept for their own sake."""
    for name in versions.models(home):
        registry = open_registries(versions.recipe_of(name, home).register, home)
        for digest in {*registry.aliases(name).values(), *registry.kept(name)}:
            yield from _version(name, digest)
    for found in placed_in(home):
        yield from _version(found.version.name, found.version.digest)
        base = found.version.base.parts
        if CHECKOUTS in base:  # a pushed commit's, whose base model is served
            yield "/".join(base[base.index(CHECKOUTS) :][:2])
    for waiting in registration.parked(home):
        yield from _version(waiting.record.name, waiting.record.digest)
        yield from (f"{inputs.HELD}{sha256}" for sha256 in waiting.held)
    for path in (home / "runs").glob("*/summary.json"):
        summary = Summary.model_validate(files.read_json(path))
        going_on = summary.status == "running" and process.is_alive(summary.process)
        if going_on or summary.status == "waiting":
            yield f"runs/{summary.run_id}"
    for lock in (home / "stages").glob("*/*.lock"):
        if _is_held(lock):
            yield lock.with_suffix("").relative_to(home).as_posix()


def _version(name: str, digest: str) -> Iterator[str]:
    yield retention.local_name(name, digest)
    yield version.key(name, digest)


def _is_held(lock: Path) -> bool:
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _places(home: Path) -> Iterator[Place]:
    yield Place(
        where=str(home),
        items=retention.in_home(home),
        delete=lambda item: retention.delete_from_home(home, item),
    )
    archives: set[str] = set()
    for name in versions.models(home):
        spec = versions.recipe_of(name, home).register
        store = storage.open_store(spec.archive, home)
        yield _archived(spec, store, home, name)
        if store.url not in archives:
            archives.add(store.url)
            yield Place(store.url, retention.inputs_in_archive(store), _deleter(store))
        for tracker in (spec.registry, *([spec.mirror] if spec.mirror else [])):
            yield _tracked(tracker, home, name)


def _deleter(store: storage.Store) -> Callable[[Item], object]:
    return lambda item: store.delete(item.id)


def _archived(spec: RegisterSpec, store: storage.Store, home: Path, name: str) -> Place:
    registry = open_registries(spec, home)
    needs = {
        record.digest: {f"{kind}:{run}" for kind, run in record.tracker_runs.items()}
        for record in registry.versions(name)
    }

    def delete(item: Item) -> None:
        digest = item.id.rpartition("sha256-")[2]
        if digest in needs:  # first its name: a version that is found is whole
            registry.forget(name, digest)
        storage.delete_tree(store, item.id)

    return Place(where=store.url, items=retention.in_archive(store, name, needs), delete=delete)


def _tracked(spec: RegistrySpec, home: Path, name: str) -> Place:
    try:
        runs = tracked_runs(spec, home, name)
    except NotFound:
        runs = []
    items = {
        f"{spec.kind}:{run.id}": Item(id=f"{spec.kind}:{run.id}", size=0, modified=run.ended)
        for run in runs
    }

    def delete(item: Item) -> None:
        delete_tracked_run(spec, home, item.id.partition(":")[2])

    return Place(where=spec.kind, items=items, delete=delete)


def _shown(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
