"""The champion's traffic, counted from the gateway's records; kept between looks. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from trainyard.monitor.change import Change
from trainyard.monitor.finding import Finding, breach, healthy, unknown
from trainyard.recipe.base import Frozen
from trainyard.recipe.monitor import FeedbackSpec, MonitorSpec
from trainyard.recipe.strategy import SloSpec
from trainyard.rollout import looks, slo

SECONDS = 10.0
"""Of one count."""
KEPT_S = max(window.long_s for window in slo.PAGE) + SECONDS


class Count(Frozen):
    at: float
    """Unix time at its end."""

    n: int = 0
    bad: dict[str, int] = Field(default_factory=dict)
    """By objective."""


class Traffic(Frozen):
    version: str = ""
    boot: str = ""
    cursor: int = 0
    counts: tuple[Count, ...] = ()
    answered_at: float | None = None
    """Unix time of the champion's last answer to a user."""

    votes: Change = Change()


def take(
    old: Traffic,
    records: Sequence[Mapping[str, Any]],
    objectives: SloSpec,
    feedback: FeedbackSpec | None,
    now: float,
) -> Traffic:
    """Add records of any version; what users asked the champion and said of its answers counts."""
    found = {count.at: count for count in old.counts}
    last, votes = old.answered_at, []
    for record in records:
        if record["digest"] != old.version:
            continue
        if record["source"] == "feedback":
            votes.append(record["score"] < 0)
        elif record["source"] == "live" and record["variant"] == "champion":
            last = max(last or 0.0, record["at"])
            end = (record["at"] // SECONDS + 1) * SECONDS
            count = found.get(end, Count(at=end))
            outcome = looks.outcome(dict(record), "")
            bad = {
                one.name: count.bad.get(one.name, 0) + bool(one.is_bad(outcome))
                for one in slo.objectives(objectives)
            }
            found[end] = Count(at=end, n=count.n + 1, bad=bad)
    heard = old.votes
    if feedback is not None:
        heard = heard.take(
            votes, baseline=feedback.baseline, margin=feedback.margin, alpha=feedback.alpha
        )
    kept = sorted((c for c in found.values() if c.at > now - KEPT_S), key=lambda c: c.at)
    return old.model_copy(update={"counts": tuple(kept), "answered_at": last, "votes": heard})


def check_budget(
    traffic: Traffic, spec: MonitorSpec, objectives: SloSpec, lost: int, now: float
) -> list[Finding]:
    """Does an error budget burn? INCONCLUSIVE without enough answers or with stale ones."""
    found = []
    for objective in slo.objectives(objectives):
        counted = [slo.Look(c.at, c.n, c.bad.get(objective.name, 0)) for c in traffic.counts]
        rings = slo.alarm(counted, now, objective, objectives.min_requests)
        n, bad = sum(c.n for c in counted), sum(c.bad for c in counted)
        evidence = {"n": n, "bad": bad, "hours": KEPT_S / 3600, "lost": lost}
        told = f"{bad} of {n} answers bad within 6 h, budget {objective.budget:.2%}"
        age = None if traffic.answered_at is None else now - traffic.answered_at
        if rings is not None:
            found.append(breach(objective.name, rings, spec.burns, **evidence))
        elif age is None or age > spec.stale_s:
            last = "it has answered nobody yet" if age is None else f"its last is {age:.0f} s old"
            reason = f"no answer of the champion within {spec.stale_s:g} s: {last}"
            found.append(unknown(objective.name, reason, **evidence))
        elif n < objectives.min_requests:
            reason = f"{told}, too few of {objectives.min_requests}"
            found.append(unknown(objective.name, reason, **evidence))
        elif lost:
            reason = f"{told}, and {lost} records were lost before this look: look more often"
            found.append(unknown(objective.name, reason, **evidence))
        else:
            found.append(healthy(objective.name, told, **evidence))
    return found


def check_feedback(traffic: Traffic, spec: FeedbackSpec) -> Finding:
    return check_change("feedback", traffic.votes, spec)


def check_change(check: str, stream: Change, spec: Any) -> Finding:
    """Has the share of bad ones risen? `spec` has baseline, margin, alpha and then."""
    if stream.n < spec.baseline:
        return unknown(
            check, f"{stream.n} of the first {spec.baseline} that later ones are held to"
        )
    reason = stream.words(check, spec.margin, spec.alpha)
    evidence = stream.model_dump(mode="json", exclude={"logs"})
    if stream.rings(spec.alpha):
        return breach(check, reason, spec.then, **evidence)
    if stream.n == stream.baseline_n:
        return unknown(check, f"{reason}: none since the beginning", **evidence)
    return healthy(check, reason, **evidence)
