"""Two registries at once: one is the source of truth, the other one follows it.

Everything is read from the first. What the second lacks is the difference between the two, so there
is no list of what it missed: each write, and each release at its start, brings it up to date.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trainyard import secrets, storage, version
from trainyard.recipe.register import RegisterSpec
from trainyard.registry import Alias, AliasMove, Registry, VersionRecord, open_registry

logger = logging.getLogger(__name__)

_ORDER: tuple[Alias, ...] = ("previous", "production", "staging", "dev", "candidate")
"""As in a promotion: killed in between, there is one champion."""


def open_registries(spec: RegisterSpec, home: Path) -> Registry:
    """Open the registry of a recipe, followed by its mirror where it has one."""
    truth = open_registry(spec.registry, home)
    if spec.mirror is None:
        return truth
    second = spec.mirror

    def archived(record: VersionRecord) -> Path:
        place = version.key(record.name, record.digest)
        folder = home / "versions" / place
        storage.get_tree(storage.open_store(spec.archive, home), place, folder)
        return folder

    return Mirrored(truth, lambda: open_registry(second, home), archived)


class Mirrored(Registry):
    def __init__(
        self,
        truth: Registry,
        mirror: Callable[[], Registry],
        archived: Callable[[VersionRecord], Path],
    ) -> None:
        """`archived` brings the folder of a version to this machine."""
        self.truth = truth
        self._mirror = mirror
        self._archived = archived

    def register(self, record: VersionRecord, folder: Path) -> None:
        self.truth.register(record, folder)
        self.follow(record.name)

    def versions(self, name: str) -> list[VersionRecord]:
        return self.truth.versions(name)

    def aliases(self, name: str) -> dict[Alias, str]:
        return self.truth.aliases(name)

    def set_alias(self, name: str, alias: Alias, digest: str, *, who: str, why: str) -> None:
        self.truth.set_alias(name, alias, digest, who=who, why=why)
        self.follow(name)

    def history(self, name: str) -> list[AliasMove]:
        return self.truth.history(name)

    def exclusive(self) -> AbstractContextManager[Any]:
        return self.truth.exclusive()

    def promote(self, name: str, digest: str, *, who: str, why: str) -> None:
        self.truth.promote(name, digest, who=who, why=why)
        self.follow(name)

    def put_back(self, name: str, *, who: str, why: str) -> VersionRecord:
        found = self.truth.put_back(name, who=who, why=why)
        self.follow(name)
        return found

    def keep(self, name: str, digest: str, why: str | None) -> None:
        self.truth.keep(name, digest, why)
        self._tried(lambda: self._mirror().keep(name, digest, why))

    def kept(self, name: str) -> dict[str, str]:
        return self.truth.kept(name)

    def forget(self, name: str, digest: str) -> None:
        self.truth.forget(name, digest)
        self._tried(lambda: self._mirror().forget(name, digest))

    def follow(self, name: str) -> None:
        """The mirror gets versions and aliases as they are now, with who and why of the last move.

        A version that only the mirror has stays: an empty source of truth must not empty it.
        """
        self._tried(lambda: self._follow(name))

    def _follow(self, name: str) -> None:
        mirror = self._mirror()
        known = {record.digest for record in mirror.versions(name)}
        for record in self.truth.versions(name):
            if record.digest not in known:
                mirror.register(record, self._archived(record))
        there, wanted = mirror.aliases(name), self.truth.aliases(name)
        last = {move.alias: move for move in self.truth.history(name)}
        for alias in _ORDER:
            if alias in wanted and there.get(alias) != wanted[alias]:
                move = last[alias]
                mirror.set_alias(name, alias, wanted[alias], who=move.who, why=move.why)

    def _tried(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # the promise: a second registry never loses a release
            said = secrets.mask(str(error))
            logger.warning("the mirror is behind, the next release catches up: %s", said)
