"""What an answer is worth to GRPO: metrics of the evaluation, a pattern, or the recipe's code."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.samples import Item
from trainyard.evaluation.task import value_of
from trainyard.recipe.evaluate import TaskSuite
from trainyard.recipe.train import PATTERN

Reward = Callable[[str, dict[str, Any]], float]
"""From an answer and the row it belongs to, in [0, 1]."""


def reward_of(name: str) -> Reward:
    """Return the function; raises InputError for a file or function that is not there."""
    if name.startswith(PATTERN):
        pattern = re.compile(name.removeprefix(PATTERN))
        return lambda text, _row: float(bool(pattern.search(text)))
    suite = TaskSuite(name="reward", kind="task", data="-", metrics=(name,))

    def reward(text: str, row: dict[str, Any]) -> float:
        item = Item(id=str(row["id"]), messages=tuple(row["asked"]), reference=row["reference"])
        return value_of(suite, name, item, text, True)  # the recipe's own code, as in evaluation

    return reward


def check(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean reward of the rows' own answers; raises InputError for one that is no number."""
    found = {}
    for name in names:
        values = [reward_of(name)(row["reference"], row) for row in rows]
        if not all(map(math.isfinite, values)):
            raise InputError(f"train.grpo.rewards: {name} gave {values} for the data's own answers")
        found[name] = sum(values) / len(values)
    return found
