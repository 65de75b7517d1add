"""Which variant do users like better? Scores from the feedback endpoint, decided at any time. Pure.

Votes are paired in the order in which they come, one of each variant. Two bettors play on the
differences, one against "the candidate gains no more than `gain`", one against "no less".
"""

from collections.abc import Iterable
from typing import NamedTuple

from trainyard.recipe.base import Frozen
from trainyard.rollout.betting import Capital
from trainyard.rollout.verdict import Verdict

_UNPAIRED = 10_000


class Vote(NamedTuple):
    canary: bool
    score: float
    """-1 bad, 1 good."""


class Mean(Frozen):
    n: int = 0
    total: float = 0.0

    def __str__(self) -> str:
        return f"{self.total / self.n:.3f} of {self.n}" if self.n else "none"


class Votes(Frozen):
    canary: Mean = Mean()
    champion: Mean = Mean()
    unpaired: tuple[float, ...] = ()
    """Scores of one variant that wait for some of the other."""

    unpaired_canary: bool = False
    better: Capital = Capital()
    worse: Capital = Capital()

    def take(self, votes: Iterable[Vote], gain: float) -> "Votes":
        """Add votes in their order; `gain` in (-2, 2) is the difference of means in question."""
        means = {True: self.canary, False: self.champion}
        waiting, whose = list(self.unpaired), self.unpaired_canary
        pairs: list[float] = []
        for vote in votes:
            old = means[vote.canary]
            means[vote.canary] = Mean(n=old.n + 1, total=old.total + vote.score)
            if waiting and whose != vote.canary:
                other = waiting.pop(0)
                difference = vote.score - other if vote.canary else other - vote.score
                pairs.append((difference + 2) / 4)
            elif len(waiting) < _UNPAIRED:
                whose = vote.canary
                waiting.append(vote.score)
        limit = (gain + 2) / 4
        return Votes(
            canary=means[True],
            champion=means[False],
            unpaired=tuple(waiting),
            unpaired_canary=whose,
            better=self.better.take(pairs, limit),
            worse=self.worse.take([1 - pair for pair in pairs], 1 - limit),
        )

    def judge(self, least: int, gain: float, alpha: float) -> Verdict:
        """Decide with at least `least` votes on each variant and one bettor past 1 / alpha."""
        shown = f"mean score {self.canary} votes, champion {self.champion}"
        e_value = max(self.better.e_value, self.worse.e_value)
        proof = f"e-value {e_value:.3g} of {1 / alpha:g}"
        decision, said = "wait", "no decision yet"
        if min(self.canary.n, self.champion.n) < least:
            said = f"not yet {least} votes on each"
        elif self.better.e_value > 1 / alpha:
            decision, said = "go_on", f"users gain more than {gain:g}"
        elif self.worse.e_value > 1 / alpha:
            decision, said = "abort", f"users gain less than {gain:g}"
        return Verdict.model_validate(
            {
                "decision": decision,
                "reason": f"{said}: {shown}; {proof}",
                "e_value": e_value,
                "metric": "feedback",
            }
        )
