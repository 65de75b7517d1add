"""Whose turn it is: fair between recipes, priorities first. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple


class Queued(NamedTuple):
    id: str
    recipe: str
    priority: int
    since: datetime


def next_up(
    waiting: Sequence[Queued],
    running: Counter[str],
    last_start: Mapping[str, datetime],
    places: int,
) -> list[str]:
    """Return the ids that may start now, at most `places`, in their order.

    Of the highest priority, the recipe with the fewest running jobs is next; of several, the one
    that started longest ago, and within a recipe the one that waits longest. A recipe that asks for
    a hundred jobs thus waits for itself, not the others for it.
    """
    left, busy, ever = list(waiting), Counter(running), dict(last_start)
    turn = 0
    chosen: list[str] = []
    served: dict[str, int] = {}
    while left and len(chosen) < places:
        first = min(
            left,
            key=lambda one: (
                -one.priority,
                busy[one.recipe],
                served.get(one.recipe, 0),
                ever[one.recipe].timestamp() if one.recipe in ever else 0.0,
                one.since,
                one.id,
            ),
        )
        left.remove(first)
        chosen.append(first.id)
        busy[first.recipe] += 1
        turn += 1
        served[first.recipe] = turn
    return chosen
