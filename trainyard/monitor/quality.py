"""Are answers still good? By jurors on logged answers, and by fresh rows that people labelled."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from trainyard import files
from trainyard.evaluation import task
from trainyard.evaluation.intervals import wilson
from trainyard.evaluation.judge.calls import Account, Jury, judge
from trainyard.evaluation.judge.protocol import Single
from trainyard.evaluation.samples import Item
from trainyard.evaluation.scores import read_scores
from trainyard.monitor.change import Change
from trainyard.monitor.finding import Finding, breach, healthy, unknown
from trainyard.monitor.questions import asked
from trainyard.monitor.traffic import check_change
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import RubricSuite, TaskSuite
from trainyard.recipe.monitor import JudgeSampleSpec, LabelledSpec
from trainyard.rollout.gateway_client import verifies
from trainyard.rollout.target import Target

AT_ONCE = 4


class Judged(Frozen):
    """Grades so far, of one jury."""

    fingerprint: str = ""
    graded_at: float = 0.0
    """Time of the newest answer that was graded."""

    stream: Change = Change()


class Labelled(Frozen):
    """The last test on fresh rows, which stands until the rows or the champion change."""

    key: str = ""
    finding: Finding | None = None


def suite_of(recipe: Recipe, name: str) -> Any:
    """Return the suite of that name; the recipe has proved that it is there."""
    return next(suite for suite in recipe.evaluate.suites if suite.name == name)


def judge_sample(
    spec: JudgeSampleSpec,
    recipe: Recipe,
    rows: Sequence[Mapping[str, Any]],
    old: Judged,
    cache: Path,
) -> tuple[Judged, Finding]:
    """Have the newest answers graded that were not yet. Raises Unavailable without a juror."""
    suite: RubricSuite = suite_of(recipe, spec.suite)
    fresh = [row for row in rows if row["at"] > old.graded_at and row.get("answer")]
    fresh = fresh[-spec.answers :]
    account = Account(suite.max_cost_usd)
    shown = [Single(asked(row["messages"]), row["answer"]) for row in fresh]
    juries = [
        Jury(juror, suite.rubric, suite.criteria, recipe.evaluate.seed, cache,
             recipe.evaluate.concurrency, recipe.evaluate.timeout_s, single=True)
        for juror in suite.jurors
    ]  # fmt: skip
    calls = [judge(jury, shown, account) for jury in juries] if shown else []
    served = sorted({call.served for row in calls for call in row if call.served})
    known = files.digest_json([[jury.fingerprint for jury in juries], served])
    if served and old.fingerprint and old.fingerprint != known:
        old = Judged()  # another judge: its grades cannot be held to those of the former one
    bad = []
    for grades in zip(*calls, strict=True):
        given = [call.grade for call in grades if call.grade is not None]
        if given:
            bad.append(sum(given) / len(given) < spec.bad_below)
    stream = old.stream.take(bad, baseline=spec.baseline, margin=spec.margin, alpha=spec.alpha)
    judged = Judged(
        fingerprint=known if served else old.fingerprint,
        graded_at=max([old.graded_at, *(row["at"] for row in fresh)]) if bad else old.graded_at,
        stream=stream,
    )
    found = check_change("judge", stream, spec)
    if shown and not bad:
        found = unknown("judge", f"no grade for {len(shown)} answers: {dict(account.failures)}")
    return judged, found.model_copy(
        update={"evidence": {**found.evidence, "account": account.as_json()}}
    )


def fresh_rows(
    spec: LabelledSpec, recipe: Recipe, target: Target, version: Path, digest: str, old: Labelled
) -> Labelled:
    """Ask the champion the labelled rows when they or it have changed, as nobody's traffic.

    `version` is the champion's folder, whose own scores are what it is held to.
    """
    suite: TaskSuite = suite_of(recipe, spec.suite).model_copy(update={"data": spec.data})
    if not Path(spec.data).exists():
        return Labelled(finding=unknown("labelled", f"{spec.data} is not there yet"))
    key = files.digest_json([digest, files.digest_file(Path(spec.data)), spec.model_dump()])
    if old.key == key and old.finding is not None:
        return old
    metric = suite.metrics[0]
    path = version / "evaluation" / "scores.jsonl"
    before = [
        float(score.value)
        for score in (read_scores(path) if path.exists() else [])
        if (score.suite, score.metric, score.arm) == (suite.name, metric, "candidate")
        and score.value is not None
    ]
    items = task.items(suite)
    after = _answers(suite, metric, items, target)
    if not before or len(after) < len(items):
        reason = (
            f"{len(after)} of {len(items)} fresh rows were answered, and the release left "
            f"{len(before)} scores of {suite.name}/{metric}"
        )
        return Labelled(finding=unknown("labelled", reason))
    fall = sum(before) / len(before) - sum(after) / len(after)
    least, _ = difference(before, after, 1 - 2 * spec.alpha)
    told = (
        f"{metric} {sum(after) / len(after):.3f} on {len(after)} fresh rows, "
        f"{sum(before) / len(before):.3f} on {len(before)} at the release; a fall of {fall:.3f}, "
        f"at least {least:.3f}, margin {spec.margin:g}"
    )
    evidence = {"fall": fall, "least": least, "n": len(after)}
    if least > spec.margin:
        return Labelled(key=key, finding=breach("labelled", told, spec.then, **evidence))
    return Labelled(key=key, finding=healthy("labelled", told, **evidence))


def difference(
    first: Sequence[float], second: Sequence[float], confidence: float
) -> tuple[float, float]:
    """Interval of the difference of two independent means of scores in [0, 1].

    Newcombe 1998 (Stat Med 17:873), method 10: Wilson's bounds, squared and added.
    """
    p, q = sum(first) / len(first), sum(second) / len(second)
    p_low, p_high = wilson(sum(first), len(first), confidence)
    q_low, q_high = wilson(sum(second), len(second), confidence)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def _answers(suite: TaskSuite, metric: str, items: Sequence[Item], target: Target) -> list[float]:
    """Scores of the rows that were answered."""
    headers = {**target.replay_headers(), "x-trainyard-variant": "champion"}
    url = target.endpoint()
    with httpx.Client(
        base_url=url, headers=headers, timeout=120, trust_env=False, verify=verifies(url)
    ) as client:

        def ask(item: Item) -> float | None:
            body = {
                "model": target.name,
                "messages": list(item.messages),
                "max_tokens": suite.max_tokens,
                "temperature": 0,
                **({"stop": list(suite.stop)} if suite.stop else {}),
            }
            try:
                answer = client.post("/v1/chat/completions", json=body)
                text = answer.json()["choices"][0]["message"]["content"]
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
                return None
            return task.value_of(suite, metric, item, text or "", trusted=True)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [value for value in pool.map(ask, items) if value is not None]
