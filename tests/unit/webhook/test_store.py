from pathlib import Path

import pytest

from trainyard.webhook.payload import Proposal, Push
from trainyard.webhook.proof import Delivery
from trainyard.webhook.store import BACKOFF_S, RunRow, Store


def push(after: str, branch: str = "main") -> Push:
    return Push(repository="a/b", branch=branch, before=None, after=after * 40)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state.db")


def accept(store: Store, id_: str, event: Push | Proposal, digest: str | None = None) -> bool:
    return store.accept([("hub", Delivery(id_, "push", digest or id_), event)])[0]


def test_a_delivery_is_taken_once_by_its_id_and_by_its_body(store: Store) -> None:
    assert accept(store, "1", push("a"), "x")
    assert not accept(store, "1", push("a"), "y")
    assert not accept(store, "2", push("a"), "x")


def test_what_was_accepted_survives_a_restart(store: Store, tmp_path: Path) -> None:
    accept(store, "1", push("a"))
    again = Store(tmp_path / "state.db")
    found = again.next("hub", "a/b")
    assert found is not None
    assert found.event == push("a")
    assert not accept(again, "1", push("a"))


def test_the_newest_push_of_the_longest_waiting_branch_is_next(store: Store) -> None:
    for id_, event in enumerate([push("a"), push("b", "topic"), push("c")]):
        accept(store, str(id_), event)
    order = []
    while (work := store.next("hub", "a/b")) is not None:
        order.append(work.event)
        store.done(work, "")
    assert order == [push("c"), push("a"), push("b", "topic")]


def test_a_newer_head_of_a_merge_request_closes_the_older_work(store: Store) -> None:
    for n, head in enumerate("ab"):
        event = Proposal(repository="a/b", number=7, base="main", head=head * 40, fork=False)
        accept(store, str(n), event)
    work = store.next("hub", "a/b")
    assert work is not None
    assert isinstance(work.event, Proposal)
    assert work.event.head == "b" * 40
    store.done(work, "")
    assert store.next("hub", "a/b") is None


def test_a_silent_service_is_asked_again_later_and_not_for_ever(store: Store) -> None:
    accept(store, "1", push("a"))
    work = store.next("hub", "a/b")
    assert work is not None
    store.failed(work, "down", again=True)
    assert store.next("hub", "a/b") is None  # not yet
    assert store.waits("hub", "a/b", "main")
    for tries in range(1, len(BACKOFF_S) + 1):
        store.failed(type(work)(work.id, work.hook, work.event, tries), "down", again=True)
    assert not store.waits("hub", "a/b", "main")


def run(sha: str, state: str = "RUNNING") -> RunRow:
    return RunRow(f"a/b:{sha}:r", "hub", "a/b", "main", sha, "r", f"run-{sha}", state, None, "",
                  None, 0)  # fmt: skip


def test_only_unfinished_runs_of_other_commits_are_superseded(store: Store) -> None:
    store.add_run(run("old"))
    store.add_run(run("ended", "COMPLETED"))
    assert [found.sha for found in store.superseded(run("new"))] == ["old"]
    assert store.superseded(run("new")) == []  # once
    store.add_run(run("old", "FAILED"))  # the same key: nothing new
    assert {row.sha: row.state for row in store.to_watch()} == {
        "old": "RUNNING",
        "ended": "COMPLETED",
    }
