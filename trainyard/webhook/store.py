"""What the webhook must not forget: deliveries, work to do, what is released. One sqlite file."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.webhook.payload import Proposal, Push
from trainyard.webhook.proof import Delivery

KEPT_S = 90 * 24 * 3600.0
BACKOFF_S = (2, 5, 10, 30, 60, 300, 1800)
"""Between tries at work whose service did not answer; about 36 minutes, then the poll goes on."""

_UNFINISHED = "('SCHEDULED', 'PENDING', 'RUNNING', 'PAUSED', 'CANCELLING')"
_SCHEMA = """
create table if not exists deliveries (
    hook text, id text, digest text, at real, primary key (hook, id), unique (hook, digest));
create table if not exists jobs (
    id integer primary key, hook text, repository text, topic text, event text, state text,
    tries integer default 0, due real default 0, said text, at real);
create index if not exists waiting on jobs (state, hook, repository, topic, id);
create table if not exists heads (
    hook text, repository text, branch text, sha text, primary key (hook, repository, branch));
create table if not exists runs (
    key text primary key, hook text, repository text, branch text, sha text, recipe text,
    flow_run text, state text, told text, said text, superseded text, tries integer default 0,
    due real default 0, at real);
create index if not exists unfinished on runs (state, told);
create table if not exists comments (
    hook text, repository text, number integer, comment text, head text,
    primary key (hook, repository, number));
"""


Arrival = tuple[str, Delivery, Push | Proposal]
"""Hook, delivery, and what it says happened."""


@dataclass(frozen=True)
class Work:
    id: int
    hook: str
    event: Push | Proposal
    tries: int


@dataclass(frozen=True)
class RunRow:
    """A release that a commit started, and what its commit was told of it."""

    key: str
    hook: str
    repository: str
    branch: str
    sha: str
    recipe: str
    flow_run: str | None
    state: str
    """Prefect's type of state; REFUSED when there is no run because the recipe cannot be used."""
    told: str | None
    """The state that the commit's status shows."""
    said: str
    superseded: str | None
    """The newer commit, where there is one."""
    tries: int


class Store:
    """Each method is one transaction; safe from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")  # a 202 is a promise
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    def accept(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Remember deliveries and their work, all in one transaction. False: was here before."""
        taken = []
        with self._transaction() as db:
            for hook, delivery, event in arrivals:
                new = db.execute(
                    "insert or ignore into deliveries values (?, ?, ?, ?)",
                    (hook, delivery.id, delivery.digest, time.time()),
                ).rowcount
                if new:
                    _add(db, hook, event)
                taken.append(bool(new))
        return taken

    def add(self, hook: str, event: Push | Proposal) -> None:
        """Add work that no delivery asked for, unless the same waits already."""
        with self._transaction() as db:
            waits = db.execute(
                "select 1 from jobs where state = 'waiting' and hook = ? and repository = ? and "
                "topic = ?",
                (hook, event.repository, _topic(event)),
            ).fetchone()
            if not waits:
                _add(db, hook, event)

    def next(self, hook: str, repository: str) -> Work | None:
        """Return due work: the topic that waits longest, and of it the newest.

        What came before on the same branch is mostly covered by it.
        """
        due = "state = 'waiting' and hook = :hook and repository = :repository and due <= :now"
        values = {"hook": hook, "repository": repository, "now": time.time()}
        with self._transaction() as db:
            longest = f"select topic from jobs where {due} order by id limit 1"
            row = db.execute(
                f"select * from jobs where {due} and topic = ({longest}) order by id desc limit 1",
                values,
            ).fetchone()
        if row is None:
            return None
        values = json.loads(row["event"])
        event = (Push if values["kind"] == "push" else Proposal).model_validate(values)
        return Work(row["id"], row["hook"], event, row["tries"])

    def done(self, work: Work, said: str) -> None:
        """Close the work and, for a merge request, older work on it."""
        with self._transaction() as db:
            db.execute("update jobs set state = 'done', said = ? where id = ?", (said, work.id))
            if isinstance(work.event, Proposal):
                db.execute(
                    "update jobs set state = 'done', said = 'covered by a newer delivery' where "
                    "state = 'waiting' and hook = ? and repository = ? and topic = ? and id < ?",
                    (work.hook, work.event.repository, _topic(work.event), work.id),
                )

    def failed(self, work: Work, said: str, *, again: bool) -> None:
        """Try again later, or give up; the poll finds what was given up."""
        again = again and work.tries < len(BACKOFF_S)
        due = time.time() + BACKOFF_S[work.tries] if again else 0.0
        with self._transaction() as db:
            db.execute(
                "update jobs set state = ?, tries = tries + 1, due = ?, said = ? where id = ?",
                ("waiting" if again else "failed", due, said, work.id),
            )

    def waits(self, hook: str, repository: str, branch: str) -> bool:
        with self._lock:
            row = self._db.execute(
                "select 1 from jobs where state = 'waiting' and hook = ? and repository = ? and "
                "topic = ?",
                (hook, repository, branch),
            ).fetchone()
        return row is not None

    def head(self, hook: str, repository: str, branch: str) -> str | None:
        """Return the commit up to which everything on the branch was released."""
        with self._lock:
            row = self._db.execute(
                "select sha from heads where hook = ? and repository = ? and branch = ?",
                (hook, repository, branch),
            ).fetchone()
        return row["sha"] if row else None

    def set_head(self, hook: str, repository: str, branch: str, sha: str | None) -> None:
        with self._transaction() as db:
            if sha is None:
                db.execute(
                    "delete from heads where hook = ? and repository = ? and branch = ?",
                    (hook, repository, branch),
                )
            else:
                values = (hook, repository, branch, sha)
                db.execute("insert or replace into heads values (?, ?, ?, ?)", values)

    def add_run(self, run: RunRow) -> None:
        with self._transaction() as db:
            db.execute(
                "insert or ignore into runs (key, hook, repository, branch, sha, recipe, flow_run, "
                "state, told, said, at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (run.key, run.hook, run.repository, run.branch, run.sha, run.recipe, run.flow_run,
                 run.state, run.told, run.said, time.time()),
            )  # fmt: skip

    def superseded(self, run: RunRow) -> list[RunRow]:
        """Mark unfinished runs of other commits of the same recipe and branch; return them."""
        where = (
            "hook = ? and repository = ? and branch = ? and recipe = ? and sha != ? and "
            f"superseded is null and state in {_UNFINISHED}"
        )
        values = (run.hook, run.repository, run.branch, run.recipe, run.sha)
        with self._transaction() as db:
            rows = db.execute(f"select * from runs where {where}", values).fetchall()
            db.execute(f"update runs set superseded = ? where {where}", (run.sha, *values))
        return [_run(row) for row in rows]

    def superseded_by(self, key: str) -> str | None:
        """Return the commit that ended the run; it is marked before the run is cancelled."""
        with self._lock:
            row = self._db.execute("select superseded from runs where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def to_watch(self) -> list[RunRow]:
        """Return the runs that are not finished, or whose end their commit was not told."""
        with self._lock:
            rows = self._db.execute(
                "select * from runs where due <= ? and (told is null or told != state or state in "
                f"{_UNFINISHED}) order by at limit 500",
                (time.time(),),
            ).fetchall()
        return [_run(row) for row in rows]

    def set_state(self, key: str, state: str, said: str) -> None:
        with self._transaction() as db:
            db.execute("update runs set state = ?, said = ? where key = ?", (state, said, key))

    def set_told(self, key: str, state: str) -> None:
        with self._transaction() as db:
            db.execute("update runs set told = ?, tries = 0 where key = ?", (state, key))

    def not_told(self, run: RunRow) -> None:
        """Wait before the commit's status is tried again; give up after the last wait."""
        if run.tries >= len(BACKOFF_S):
            self.set_told(run.key, run.state)
            return
        due = time.time() + BACKOFF_S[run.tries]
        with self._transaction() as db:
            db.execute("update runs set tries = tries + 1, due = ? where key = ?", (due, run.key))

    def needs_checkout(self, sha: str) -> bool:
        """Whether a run of this commit is not finished."""
        with self._lock:
            row = self._db.execute(
                f"select 1 from runs where sha = ? and state in {_UNFINISHED}", (sha,)
            ).fetchone()
        return row is not None

    def comment(self, hook: str, repository: str, number: int) -> tuple[str, str] | None:
        """Return the id of the plan's comment, and the head that it is about."""
        with self._lock:
            row = self._db.execute(
                "select * from comments where hook = ? and repository = ? and number = ?",
                (hook, repository, number),
            ).fetchone()
        return (row["comment"], row["head"]) if row else None

    def set_comment(self, hook: str, repository: str, number: int, comment: str, head: str) -> None:
        with self._transaction() as db:
            values = (hook, repository, number, comment, head)
            db.execute("insert or replace into comments values (?, ?, ?, ?, ?)", values)

    def forget(self) -> None:
        """Drop what is older than anything that can come again."""
        old = time.time() - KEPT_S
        with self._transaction() as db:
            db.execute("delete from deliveries where at < ?", (old,))
            db.execute("delete from jobs where at < ? and state != 'waiting'", (old,))

    def counts(self) -> dict[str, int]:
        """Return how much of everything there is, for the health page."""
        with self._lock:
            found = {
                name: self._db.execute(f"select count(*) from {name}").fetchone()[0]
                for name in ("deliveries", "runs", "comments")
            }
            states = self._db.execute("select state, count(*) from jobs group by state").fetchall()
        return found | {f"jobs_{row[0]}": row[1] for row in states}


def _add(db: sqlite3.Connection, hook: str, event: Push | Proposal) -> None:
    db.execute(
        "insert into jobs (hook, repository, topic, event, state, at) values "
        "(?, ?, ?, ?, 'waiting', ?)",
        (hook, event.repository, _topic(event), event.model_dump_json(), time.time()),
    )


def _topic(event: Push | Proposal) -> str:
    """What newer work replaces: a branch, or a merge request."""
    return event.branch if isinstance(event, Push) else f"#{event.number}"


def _run(row: Any) -> RunRow:
    return RunRow(**{name: row[name] for name in RunRow.__dataclass_fields__})
