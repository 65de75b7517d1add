"""Is the mean of bounded values above a limit? Capital that may be looked at as often as one likes.

A bettor against "the mean is at most m" stakes a share f of the capital on each value x in [0, 1]
and has 1 + f (x - m) / m times as much afterwards: fair at m, a loss below, so the chance ever to
reach 1 / alpha is alpha at most (Ville 1939). The best f depends on the unknown mean; the capital
is the mean over several, which is as fair (Waudby-Smith & Ramdas 2024, arXiv:2010.09686, sec. 4).
It departs from them in that the shares are fixed and few. Pure.
"""

import math
from collections.abc import Iterable

from trainyard.recipe.base import Frozen

_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


class Capital(Frozen):
    """What the bettor has, by share; 1 at the start."""

    logs: tuple[float, ...] = (0.0,) * len(_SHARES)

    def take(self, values: Iterable[float], limit: float) -> "Capital":
        """Bet on each of `values`, in [0, 1], against a mean of at most `limit`, in (0, 1)."""
        logs = list(self.logs)
        for value in values:
            over = (value - limit) / limit
            for i, share in enumerate(_SHARES):
                logs[i] += math.log1p(share * over)
        return Capital(logs=tuple(logs))

    @property
    def e_value(self) -> float:
        return sum(math.exp(min(600.0, log)) for log in self.logs) / len(self.logs)
