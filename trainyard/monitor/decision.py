"""From findings to actions: what rings, goes back, is asked for, and what must wait. Pure.

One request for a release in a cool-down, and no more of them than the budget allows. An action is
on record before it is done, under an id that makes doing it twice harmless.
"""

from collections.abc import Sequence
from typing import Literal

from trainyard.files import digest_json
from trainyard.monitor.finding import Finding, Health, worst
from trainyard.recipe.base import Frozen
from trainyard.recipe.monitor import MonitorSpec

Kind = Literal["alert", "rollback", "release"]


class Action(Frozen):
    id: str
    """The same for the same intention: Prefect starts one run for it, however often it is asked."""

    at: float
    """Unix time of the decision."""

    kind: Kind
    checks: tuple[str, ...]
    why: str
    status: Literal["intended", "done", "held", "failed"]
    outcome: str = ""
    """What came of it, or why it is held."""


class Situation(Frozen):
    """What a decision depends on beside the findings."""

    model: str
    version: str
    """Digest of the champion."""

    no_way_back: str = ""
    """Why the former champion cannot be put back; empty when it can."""

    releasing: str | None = None
    """Run id of a release of this model that goes on."""


def decide(
    findings: Sequence[Finding],
    situation: Situation,
    history: Sequence[Action],
    spec: MonitorSpec,
    now: float,
) -> list[Action]:
    """Actions to do, and those that are held with the reason. `history` has earlier actions.

    An intention that was never finished comes again under its own id.
    """
    calling = [f for f in findings if f.health is not Health.HEALTHY and f.then is not None]
    actions: list[Action] = []
    back = [f for f in calling if f.then == "rollback"]
    if back:
        held = situation.no_way_back
        actions.append(_action("rollback", back, situation, now, held))
    going_back = any(action.status == "intended" for action in actions)
    again = [f for f in calling if f.then == "release"]
    if again:
        held = _held(situation, history, spec, now, going_back=going_back)
        actions.append(_action("release", again, situation, now, held))
    quiet = _rung(history, now - spec.alert_again_s)
    loud = [f for f in calling if f.check not in quiet]
    if loud:
        actions.insert(0, _action("alert", loud, situation, now, ""))
    return _resumed(actions, history)


def _action(
    kind: Kind, findings: Sequence[Finding], situation: Situation, now: float, held: str
) -> Action:
    checks = tuple(finding.check for finding in findings)
    return Action(
        id=digest_json([situation.model, situation.version, kind, checks, now])[:16],
        at=now,
        kind=kind,
        checks=checks,
        why="; ".join(finding.reason for finding in findings),
        status="held" if held else "intended",
        outcome=held,
    )


def _held(
    situation: Situation,
    history: Sequence[Action],
    spec: MonitorSpec,
    now: float,
    *,
    going_back: bool,
) -> str:
    """Why no release is asked for now; empty when one may be."""
    if going_back:
        return "the former champion comes back first"
    if situation.releasing:
        return f"{situation.releasing} goes on"
    asked = [a.at for a in history if a.kind == "release" and a.status == "done"]
    rules = spec.release
    if asked and now - max(asked) < rules.cooldown_s:
        left = rules.cooldown_s - (now - max(asked))
        return f"a release was asked for {now - max(asked):.0f} s ago; {left:.0f} s to wait"
    recent = [at for at in asked if now - at < rules.budget_s]
    if len(recent) >= rules.budget:
        return (
            f"{len(recent)} releases were asked for within {rules.budget_s / 86_400:g} days, "
            f"the budget is {rules.budget}"
        )
    return ""


def _rung(history: Sequence[Action], since: float) -> set[str]:
    """Checks that rang since then."""
    rang = [a for a in history if a.kind == "alert" and a.status == "done" and a.at > since]
    return {check for action in rang for check in action.checks}


def _resumed(actions: Sequence[Action], history: Sequence[Action]) -> list[Action]:
    """Take up what was intended and never finished, rather than intend it a second time."""
    last = {action.id: action for action in history}
    open_ = {action.kind: action for action in last.values() if action.status == "intended"}
    return [
        action.model_copy(update={"id": open_[action.kind].id})
        if action.status == "intended" and action.kind in open_
        else action
        for action in actions
    ]


__all__ = ["Action", "Situation", "decide", "worst"]
