"""A training's checkpoints, copied to the archive while it goes on: for machines that vanish.

A copy that fails is logged and never stops the training; a finished training leaves none.
"""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainyard import storage
from trainyard.errors import TrainyardError
from trainyard.storage import Store
from trainyard.training.checkpoints import MARKER, newest_complete, step_of
from trainyard.training.job import BEST, CHECKPOINTS, METRICS

logger = logging.getLogger(__name__)

EVERY_S = 0.5
KEEP = 2


@dataclass
class Mirror:
    store: Store
    run: str
    """Name of the training: the same on every machine that may go on with it."""
    known: set[str] = field(default_factory=set)

    def fetch(self, folder: Path) -> None:
        """Bring the newest copy into a folder that has no checkpoint, and what it goes on from."""
        checkpoints = folder / CHECKPOINTS
        if newest_complete(checkpoints):
            return
        try:
            names = storage.list_checkpoints(self.store, self.run)
            if not names:
                return
            found = storage.get_checkpoint(self.store, self.run, names[-1], checkpoints)
        except TrainyardError as error:
            logger.warning("checkpoints of %s cannot be brought back: %s", self.run, error)
            return
        logger.info("%s of %s comes from the archive", found.name, self.run)
        self.known.add(found.name)
        if (found / METRICS).is_file():  # a program of somebody else's may not add it
            shutil.copyfile(found / METRICS, folder / METRICS)
        if (found / BEST).is_dir():
            shutil.copytree(found / BEST, folder / BEST, dirs_exist_ok=True)

    @contextmanager
    def following(self, folder: Path) -> Iterator[None]:
        """Copy each checkpoint once it is whole; delete the copies when this ends well."""
        over = threading.Event()
        thread = threading.Thread(target=self._follow, args=(folder / CHECKPOINTS, over))
        thread.start()
        try:
            yield
        except BaseException:
            over.set()
            thread.join()
            self._copy(folder / CHECKPOINTS)
            raise
        over.set()
        thread.join()
        try:
            storage.drop_checkpoints(self.store, self.run)
        except TrainyardError as error:
            logger.warning("copies of %s stay until a sweep: %s", self.run, error)

    def _follow(self, checkpoints: Path, over: threading.Event) -> None:
        while not over.wait(EVERY_S):
            self._copy(checkpoints)

    def _copy(self, checkpoints: Path) -> None:
        """Copy the newest whole checkpoint, unless it is there; the trainer may delete older."""
        whole = [path.parent for path in checkpoints.glob(f"checkpoint-*/{MARKER}")]
        newest = max(whole, key=step_of, default=None)
        if newest is None or newest.name in self.known:
            return
        try:
            storage.put_checkpoint(self.store, self.run, newest)
            storage.drop_checkpoints(self.store, self.run, keep=KEEP)
        except (TrainyardError, OSError) as error:
            logger.warning("%s is not copied to the archive: %s", newest, error)
        self.known.add(newest.name)  # the next one is the next try
