"""Queue and step loop: one thread that owns the model and decodes all sequences in small batches.

Sequences of one adapter share a batch and may join or leave it at every step; adapters take turns.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from trainyard.errors import InputError, NotFound, Unavailable
from trainyard.serving.server_batch import Batch, score_prompts
from trainyard.serving.server_metrics import Metrics
from trainyard.serving.server_model import Model
from trainyard.serving.server_sequence import Event, Reason, Scored, Sequence, Served

log = logging.getLogger(__name__)

T = TypeVar("T")

_TURN_S = 0.05
"""Time one adapter's batch runs before the next one's turn: switching adapters costs about 1 ms."""

_PROMPT_TOKENS = 8192
"""Padded prompt tokens that are run together when sequences join."""


class QueueFull(Exception):
    """Too many sequences wait; `args[0]` is when to try again, in seconds."""


class Engine(threading.Thread):
    """Start with `start()`. Its public methods may be called from the event loop only."""

    def __init__(
        self,
        model: Model,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        *,
        max_batch: int,
        max_queue: int,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.model = model
        self.served = {model.base.name: model.base}
        self._metrics = metrics
        self._loop = loop
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._wake = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._leaving: dict[str, Future[None]] = {}
        self._batches: dict[str, Batch] = {}
        self._turn_began = 0.0
        self._seconds_each = 1.0
        self._outbox: list[tuple[Sequence, Event]] = []
        self._unfinished = 0
        self.draining = False

    # called in the event loop

    def submit(self, sequences: Rows[Sequence]) -> None:
        """Queue sequences. Raises QueueFull, NotFound, or Unavailable while the server drains."""
        if self.draining:
            raise Unavailable("this server is shutting down; send the request to another one")
        for sequence in sequences:
            if sequence.model not in self.served:
                raise NotFound(f"{sequence.model} has just been unloaded")
        with self._wake:
            if len(self._waiting) >= self._max_queue:
                rounds = (len(self._waiting) + 1) / self._max_batch
                raise QueueFull(min(60, max(1, round(rounds * self._seconds_each))))
            self._waiting.extend(sequences)
            self._wake.notify()
        self._unfinished += len(sequences)

    def cancel(self, sequences: Rows[Sequence]) -> None:
        with self._wake:
            for sequence in sequences:
                sequence.cancelled = True
            self._wake.notify()

    async def load(self, name: str, folder: Path) -> Served:
        """Load an adapter and serve it as `name`. Raises InputError."""
        if name in self.served:
            raise InputError(
                f"{name} is already served from {self.served[name].folder}; "
                "a name is never reused for other weights"
            )
        served = await self._between_steps(lambda: self.model.load(name, folder))
        self.served[name] = served
        return served

    async def unload(self, name: str) -> None:
        """Stop serving `name`; returns when its requests are done and its memory is free."""
        served = self.served.get(name)
        if served is None or served is self.model.base:
            raise NotFound(f"{name} is not an adapter that is served here")
        del self.served[name]
        done: Future[None] = Future()
        with self._wake:
            self._leaving[served.key] = done
            self._wake.notify()
        await asyncio.wrap_future(done)
        self._metrics.forget(name)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse what is new, finish what is queued and running. False when time ran out."""
        self.draining = True
        end = time.monotonic() + timeout_s
        while self._unfinished and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return not self._unfinished

    def _deliver(self, outbox: list[tuple[Sequence, Event]]) -> None:
        for sequence, event in outbox:
            self._unfinished -= event.last
            sequence.deliver(event)

    async def _between_steps(self, job: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except BaseException as error:  # handed to whoever awaits the job
                done.set_exception(error)

        with self._wake:
            self._jobs.append(run)
            self._wake.notify()
        return await asyncio.wrap_future(done)

    # called in the engine's thread

    def run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not (self._waiting or self._jobs or self._leaving or self._batches):
                        self._wake.wait()
                self._round()
                if self._outbox:
                    self._loop.call_soon_threadsafe(self._deliver, self._outbox)
                    self._outbox = []

    def _round(self) -> None:
        while self._jobs:
            self._jobs.popleft()()
        joining = self._admit()
        for key, rows in joining.items():
            self._guarded(key, rows, partial(self._join, key, rows))
        self._drop_cancelled()
        if self._batches:
            key = self._whose_turn()
            batch = self._batches[key]
            self._guarded(key, batch.rows, partial(self._step, key, batch))
        self._free_unused()
        running = sum(len(batch.rows) for batch in self._batches.values())
        self._metrics.show_load(running, len(self._waiting))

    def _admit(self) -> dict[str, list[Sequence]]:
        """Take sequences off the queue, in order, while their adapter's batch has room."""
        joining: dict[str, list[Sequence]] = {}
        room = {key: self._max_batch - len(batch.rows) for key, batch in self._batches.items()}
        later: deque[Sequence] = deque()
        now = time.monotonic()
        with self._wake:
            while self._waiting:
                sequence = self._waiting.popleft()
                left = room.get(sequence.key, self._max_batch)
                if sequence.cancelled:
                    self._end(sequence, Reason.ABORT)
                elif left > 0:
                    room[sequence.key] = left - 1
                    sequence.started = now
                    joining.setdefault(sequence.key, []).append(sequence)
                else:
                    later.append(sequence)
            self._waiting = later
        return joining

    def _join(self, key: str, rows: list[Sequence]) -> None:
        self.model.activate(key)
        for group in _alike([row for row in rows if row.sampling.prompt_logprobs is not None]):
            for row, scores in zip(group, score_prompts(self.model, group), strict=True):
                row.prompt_scored = scores
                if row.sampling.max_tokens == 0:
                    self._end(row, Reason.LENGTH)
        for group in _alike([row for row in rows if row.sampling.max_tokens > 0]):
            batch = self._batches.setdefault(key, Batch(self.model))
            before = len(batch.rows)
            self._take(key, batch, batch.join(group), before)

    def _step(self, key: str, batch: Batch) -> None:
        self.model.activate(key)
        self._take(key, batch, batch.step(), 0)

    def _take(
        self, key: str, batch: Batch, picked: list[tuple[int, Scored | None]], first: int
    ) -> None:
        """Give rows from `first` on their tokens and let those leave that are done."""
        now = time.monotonic()
        kept = list(range(first))
        for i, (token, scored) in enumerate(picked, first):
            row = batch.rows[i]
            reason = row.push(token, scored, now)
            event = row.event(reason)
            if event is not None:
                self._say(row, event)
            if reason is None:
                kept.append(i)
            else:
                self._account(row, reason, now)
        self._keep(key, batch, kept)

    def _keep(self, key: str, batch: Batch, kept: list[int]) -> None:
        batch.keep(kept)
        if not kept:
            self._batches.pop(key, None)

    def _drop_cancelled(self) -> None:
        for key, batch in list(self._batches.items()):
            kept = [i for i, row in enumerate(batch.rows) if not row.cancelled]
            for row in batch.rows:
                if row.cancelled:
                    self._end(row, Reason.ABORT)
            self._keep(key, batch, kept)

    def _whose_turn(self) -> str:
        """The first batch in order, until its time is over; then it goes to the end."""
        now = time.monotonic()
        key = next(iter(self._batches))
        if now - self._turn_began > _TURN_S:
            self._batches[key] = self._batches.pop(key)
            self._turn_began = now
            key = next(iter(self._batches))
        return key

    def _free_unused(self) -> None:
        """Free adapters that were asked to leave and that no sequence uses any more."""
        if not self._leaving:
            return
        with self._wake:
            used = {sequence.key for sequence in self._waiting} | self._batches.keys()
            free = [(key, self._leaving.pop(key)) for key in self._leaving.keys() - used]
        for key, done in free:
            self.model.unload(key)
            done.set_result(None)

    def _guarded(self, key: str, rows: Rows[Sequence], work: Callable[[], None]) -> None:
        """A step that fails ends its own sequences with an error; the server goes on."""
        try:
            work()
        except Exception as error:  # one broken request must not stop the others
            log.exception("a batch of %s failed", key or "the base")
            batch = self._batches.pop(key, None)
            failed = {id(row): row for row in [*rows, *(batch.rows if batch else ())]}
            for row in failed.values():
                self._say(row, Event(error=f"{type(error).__name__}: {error}"))
                self._metrics.count(row, "error")

    def _say(self, row: Sequence, event: Event) -> None:
        if not row.done:
            row.done = event.last
            self._outbox.append((row, event))

    def _end(self, row: Sequence, reason: Reason) -> None:
        self._say(row, row.event(reason) or Event(reason=reason))
        self._account(row, reason, time.monotonic())

    def _account(self, row: Sequence, reason: Reason, now: float) -> None:
        self._metrics.observe(row, reason, now)
        if row.started is not None and reason is not Reason.ABORT:
            self._seconds_each += 0.1 * (now - row.started - self._seconds_each)


def _alike(rows: list[Sequence]) -> list[list[Sequence]]:
    """Rows in groups that are run together: bounded padded size, neighbours in length."""
    groups: list[list[Sequence]] = []
    for row in sorted(rows, key=lambda row: len(row.prompt_ids)):
        size = len(row.prompt_ids)
        if groups and (len(groups[-1]) + 1) * size <= _PROMPT_TOKENS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
