import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.inbox import Inbox, inbox
from trainyard import notify
from trainyard.errors import Refused
from trainyard.notify import Message
from trainyard.process import ProcessRecord
from trainyard.recipe.notify import NotifySpec
from trainyard.run import Summary

__all__ = ["inbox"]

MESSAGE = Message(event="success", title="PASS: x@1 is released", lines=("n 400",))


def test_one_message_per_event_with_verdict_and_numbers(inbox: Inbox) -> None:
    assert notify.send(NotifySpec(to=("env:INBOX",)), MESSAGE) == []
    assert len(inbox.got) == 1
    assert inbox.got[0]["title"] == "PASS: x@1 is released"
    assert inbox.got[0]["message"] == "n 400"
    assert inbox.got[0]["type"] == "success"


def test_events_that_nobody_asked_for_are_not_sent(inbox: Inbox) -> None:
    assert notify.send(NotifySpec(to=("env:INBOX",), on=("failure",)), MESSAGE) == []
    assert inbox.got == []


def test_what_cannot_be_sent_is_said_without_the_address_and_raises_nothing(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.status = 500
    monkeypatch.setenv("STRANGE", "telegraph://somewhere-secret")
    spec = NotifySpec(to=("env:INBOX", "env:STRANGE", "env:NOT_SET"))
    problems = notify.send(spec, MESSAGE)
    assert [p.partition(" ")[0].rstrip(":") for p in problems] == list(spec.to)
    assert "secret" not in caplog.text + "".join(problems)


def test_a_silent_place_does_not_hold_the_release(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.delay_s = 3
    monkeypatch.setattr(notify, "LONGEST_S", 0.2)
    begin = time.monotonic()
    assert "not sent within" in notify.send(NotifySpec(to=("env:INBOX",)), MESSAGE)[0]
    assert time.monotonic() - begin < 2


def summary(**values: object) -> Summary:
    known: dict[str, Any] = {
        "run_id": "r",
        "recipe": "quickstart",
        "recipe_path": "p",
        "started": "now",
        "process": ProcessRecord(pid=1, started=0),
    }
    return Summary.model_validate(known | values)


@pytest.mark.parametrize(
    ("error", "stage", "event"),
    [
        (None, None, "success"),
        (Refused("FAIL: exact_match"), "gate", "blocked"),
        (Refused("worse"), "rollout", "rolled_back"),
        (RuntimeError("out of disk"), "train", "failure"),
        (KeyboardInterrupt(), "train", "failure"),
    ],
)
def test_the_end_of_a_release_is_one_event(
    tmp_path: Path, error: BaseException | None, stage: str | None, event: str
) -> None:
    gate = {"id": "exact_match", "verdict": "FAIL", "estimate": 0.5, "low": 0.4, "high": 0.6,
            "op": ">=", "threshold": 0.9, "n": 400}  # fmt: skip
    (tmp_path / "gate.json").write_text(json.dumps({"gates": [gate]}))
    ended = summary(failed_stage=stage, verdict="FAIL", version="quickstart@1")
    found = notify.of_release(ended, tmp_path, error, {"run": "http://prefect/run"})
    assert found.event == event
    assert "exact_match: FAIL 0.5 (0.4 to 0.6), limit >= 0.9, n 400" in found.body
    assert "run: http://prefect/run" in found.body


@pytest.mark.parametrize(
    "address",
    [
        "mailtos://user:word@example.com?smtp=mail.example.com&to=team@example.com",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#releases",
        "workflows://example.com/0123456789abcdef/signature-of-it/",  # Microsoft Teams
        "jsons://example.com/hook",
    ],
)
def test_the_places_that_the_recipe_names_are_known(address: str) -> None:
    assert notify.apprise.Apprise.instantiate(address)
