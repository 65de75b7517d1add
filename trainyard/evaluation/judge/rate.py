"""The win rate behind a set of judgements, and what it says about the judge itself."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.scores import Judgement

_SCORE = {("AB", "A"): 1.0, ("AB", "B"): 0.0, ("BA", "B"): 1.0, ("BA", "A"): 0.0}


@dataclass(frozen=True, slots=True)
class WinRate:
    """Win rate of the candidate over items; a tie is half a win, an invalid call a loss."""

    mean: float
    standard_error: float
    """Of the mean over items; NaN for one item."""
    wins: int
    losses: int
    ties: int
    """Items with a mean score above, below and at one half; the three add up to `n`."""
    invalid: int
    """Calls without a usable verdict."""
    n: int
    calls: int
    consistent: float
    """Share of items whose valid verdicts agree in both orders; NaN when no item has both."""
    first: float
    """Share of decisive calls that chose the answer shown first; 0.5 without position bias."""


def call_score(order: str, verdict: str) -> float:
    """What one call is worth to the candidate: win 1, tie 0.5, loss or invalid 0."""
    return 0.5 if verdict == "tie" else _SCORE.get((order, verdict), 0.0)


def item_scores(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Mean over jurors of the mean over orders, per item: in {0, .25, .5, .75, 1} for one juror."""
    calls: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in judgements:
        calls[row.id][row.juror].append(call_score(row.order, row.verdict))
    return {
        item: sum(sum(s) / len(s) for s in jurors.values()) / len(jurors)
        for item, jurors in calls.items()
    }


def win_rate(judgements: Iterable[Judgement | Mapping[str, Any]]) -> WinRate:
    """Win rate over items. Raises InputError without judgements."""
    rows = [row if isinstance(row, Judgement) else _judgement(row) for row in judgements]
    rows = [row for row in rows if not row.human]
    if not rows:
        raise InputError("no win rate from 0 judgements: did the judge run?")
    scores = list(item_scores(rows).values())
    n, mean = len(scores), sum(scores) / len(scores)
    squares = sum((score - mean) ** 2 for score in scores)
    decisive = [row for row in rows if row.verdict in ("A", "B")]
    return WinRate(
        mean=mean,
        standard_error=math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan,
        wins=sum(score > 0.5 for score in scores),
        losses=sum(score < 0.5 for score in scores),
        ties=sum(score == 0.5 for score in scores),
        invalid=sum(row.verdict not in ("A", "B", "tie") for row in rows),
        n=n,
        calls=len(rows),
        consistent=consistency(rows),
        first=sum(row.verdict == "A" for row in decisive) / len(decisive) if decisive else 0.5,
    )


def consistency(rows: Iterable[Judgement]) -> float:
    """Share of (item, juror) pairs with two valid verdicts whose verdicts agree."""
    seen: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.verdict in ("A", "B", "tie"):
            seen[row.id, row.juror][row.order] = call_score(row.order, row.verdict)
    both = [orders for orders in seen.values() if len(orders) == 2]
    return sum(o["AB"] == o["BA"] for o in both) / len(both) if both else math.nan


def _judgement(row: Mapping[str, Any]) -> Judgement:
    known = Judgement.__dataclass_fields__
    try:
        return Judgement(**{key: value for key, value in row.items() if key in known})
    except TypeError as error:
        raise InputError(f"{dict(row)!r} is no judgement: {error}") from error
