"""Tell people what happened: mail, Slack, Teams, a webhook, and what else Apprise knows.

A message that cannot be sent is a warning in the log, never a failure of the release.
"""

import logging
import threading
from pathlib import Path
from typing import Any

import apprise
from pydantic import BaseModel, ConfigDict

from trainyard import files, secrets
from trainyard.approval import Question
from trainyard.errors import Refused, TrainyardError
from trainyard.recipe.notify import Event, NotifySpec
from trainyard.rollout import Rollback
from trainyard.run import Summary, reason_of

logger = logging.getLogger(__name__)

LONGEST_S = 30.0
"""After this a release goes on, whether the message went out or not."""

TYPES: dict[Event, apprise.NotifyType] = {
    "success": apprise.NotifyType.SUCCESS,
    "failure": apprise.NotifyType.FAILURE,
    "blocked": apprise.NotifyType.WARNING,
    "rolled_back": apprise.NotifyType.WARNING,
    "waiting": apprise.NotifyType.INFO,
    "alarm": apprise.NotifyType.WARNING,
}


class Message(BaseModel):
    """One event as people read it."""

    model_config = ConfigDict(frozen=True)

    event: Event
    title: str
    """The verdict, in one line."""
    lines: tuple[str, ...] = ()
    """The numbers."""
    links: dict[str, str] = {}
    """Words -> address."""

    @property
    def body(self) -> str:
        return "\n".join([*self.lines, *(f"{words}: {url}" for words, url in self.links.items())])


def send(spec: NotifySpec, message: Message) -> list[str]:
    """Send the message to every place that wants its event; return what went wrong. Never raises.

    Waits at most 30 s.
    """
    if message.event not in spec.on or not spec.to:
        return []
    problems: list[str] = []
    sending = threading.Thread(target=_send, args=(spec, message, problems), daemon=True)
    sending.start()
    sending.join(LONGEST_S)
    if sending.is_alive():
        problems.append(f"not sent within {LONGEST_S:.0f} s")
    for problem in problems:
        logger.warning("notify %s: %s", message.event, problem)
    return problems


def _send(spec: NotifySpec, message: Message, problems: list[str]) -> None:
    for place in spec.to:
        try:
            _send_to(place, message)
        except TrainyardError as error:
            problems.append(str(error))
        except Exception as error:  # a release never fails for its message
            problems.append(f"{place}: {secrets.mask(f'{type(error).__name__}: {error}')}")


def _send_to(place: str, message: Message) -> None:
    target = apprise.Apprise()
    if not target.add(secrets.resolve(place)):
        raise TrainyardError(f"{place} is no address that Apprise knows")
    sent = target.notify(
        title=secrets.mask(message.title),
        body=secrets.mask(message.body) or message.title,
        notify_type=TYPES[message.event],
        body_format=apprise.NotifyFormat.TEXT,
    )
    if not sent:
        raise TrainyardError(f"{place} did not take the message")


def of_release(
    summary: Summary, folder: Path, error: BaseException | None, links: dict[str, str]
) -> Message:
    """What a release came to: verdict, every gate's numbers, and where to read more."""
    gates = folder / "gate.json"
    numbers = [_gate(gate) for gate in files.read_json(gates)["gates"]] if gates.exists() else []
    event, title = _ending(summary, error)
    reason = reason_of(error).splitlines() if error else []
    return Message(event=event, title=title, lines=(*reason[:10], *numbers), links=links)


def _ending(summary: Summary, error: BaseException | None) -> tuple[Event, str]:
    name, stage = summary.recipe, summary.failed_stage
    if error is None:
        return "success", f"{summary.verdict}: {summary.version} is released"
    if isinstance(error, Refused) and stage == "rollout":
        return "rolled_back", f"{summary.version} was sent back: the former champion serves"
    if isinstance(error, Refused) and stage == "approve":
        return "blocked", f"{name}: not approved, nothing ships"
    if isinstance(error, Refused):
        return "blocked", f"{name}: {summary.verdict or 'refused'} at {stage}, nothing ships"
    return "failure", f"{name} failed at {stage or 'its start'}"


def _gate(gate: dict[str, Any]) -> str:
    if gate.get("estimate") is None:
        return f"{gate['id']}: {gate['verdict']}, {gate['reason']}"
    bounds = f"{gate['low']:.4g} to {gate['high']:.4g}"
    limit = f"limit {gate['op']} {gate['threshold']:g}"
    return (
        f"{gate['id']}: {gate['verdict']} {gate['estimate']:.4g} ({bounds}), {limit}, n {gate['n']}"
    )


def of_rollback(name: str, done: Rollback, why: str) -> Message:
    title = f"{name}: {done.back_to} serves again instead of {done.away_from}"
    return Message(event="rolled_back", title=title, lines=(why, f"after {done.seconds:.2f} s"))


def of_approval(asked: Question, links: dict[str, str]) -> Message:
    title = f"{asked.served_name} waits for an approval for {asked.environment}"
    lines = (f"by {' or '.join(asked.by)}, until {asked.expires}", f"or by hand: {asked.command}")
    return Message(event="waiting", title=title, lines=lines, links=links)


def of_alarm(name: str, version: str, lines: tuple[str, ...], links: dict[str, str]) -> Message:
    """`lines` say what the monitor saw, with its numbers."""
    return Message(event="alarm", title=f"{name}: alarm on {version}", lines=lines, links=links)
