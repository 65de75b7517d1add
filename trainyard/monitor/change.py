"""Has a share of bad answers risen since some unknown moment? May be looked at after each answer.

The first answers give a limit: the upper confidence bound of their share, and the margin. A bettor
against "the share is within the limit" begins anew before each answer with a part of the capital
that shrinks as 1 / (t (t + 1)), so that a change after a long good time is found nearly as soon as
one at the beginning, and all the capital together is still a fair game: the chance that it ever
passes 1 / alpha is alpha at most (Ville 1939; mixtures over the change: Shin, Ramdas & Rinaldo
2023, arXiv:2203.03532). It departs from them in that several bets are mixed too. Pure.
"""

import math
from collections.abc import Iterable, Sequence

from trainyard.evaluation.intervals import clopper_pearson
from trainyard.recipe.base import Frozen

_SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)


class Change(Frozen):
    """One stream of answers, kept between looks as JSON."""

    n: int = 0
    bad: int = 0
    """Of all answers, those of the beginning included."""

    baseline_n: int = 0
    baseline_bad: int = 0
    logs: tuple[float, ...] = ()
    """Logarithm of what the begun bets are worth, by share staked; empty before the first."""

    e_value: float = 1.0

    def take(
        self, answers: Iterable[bool], *, baseline: int, margin: float, alpha: float
    ) -> "Change":
        """Add answers in their order, True for a bad one."""
        every = list(answers)
        left = max(0, baseline - self.baseline_n)
        first, later = every[:left], every[left:]
        begun = Change(
            n=self.n + len(first),
            bad=self.bad + sum(first),
            baseline_n=self.baseline_n + len(first),
            baseline_bad=self.baseline_bad + sum(first),
            logs=self.logs,
            e_value=self.e_value,
        )
        return begun._bet(later, begun.limit(margin, alpha)) if later else begun

    def limit(self, margin: float, alpha: float) -> float:
        """Share that later answers may reach; its bound uses half of alpha, the bets the rest."""
        _, high = clopper_pearson(self.baseline_bad, self.baseline_n, confidence=1 - alpha)
        return min(0.99, high + margin)

    def _bet(self, answers: Sequence[bool], limit: float) -> "Change":
        logs = list(self.logs or (-math.inf,) * len(_SHARES))
        t = self.n - self.baseline_n
        for bad in answers:
            begun, over = -math.log((t + 1) * (t + 2)), (bad - limit) / limit
            t += 1
            for i, share in enumerate(_SHARES):
                logs[i] = _log_sum(logs[i], begun) + math.log1p(share * over)
        worth = sum(math.exp(min(600.0, log)) for log in logs) / len(logs)
        return self.model_copy(
            update={
                "n": self.n + len(answers),
                "bad": self.bad + sum(answers),
                "logs": tuple(logs),
                "e_value": worth + 1 / (t + 1),  # what has not been staked yet
            }
        )

    def rings(self, alpha: float) -> bool:
        return self.e_value >= 2 / alpha

    def words(self, what: str, margin: float, alpha: float) -> str:
        later_n, later_bad = self.n - self.baseline_n, self.bad - self.baseline_bad
        return (
            f"{what}: {self.baseline_bad} bad of the first {self.baseline_n}, {later_bad} of "
            f"{later_n} since, limit {self.limit(margin, alpha):.1%}; e-value {self.e_value:.3g} "
            f"of {2 / alpha:g}"
        )


def _log_sum(one: float, other: float) -> float:
    high = max(one, other)
    return high + math.log(math.exp(one - high) + math.exp(other - high))
