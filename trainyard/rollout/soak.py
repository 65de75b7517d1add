"""After promotion: the new champion alone, with the former one still warm."""

import math
from collections.abc import Sequence

from trainyard.recipe import deploy
from trainyard.rollout import looks, slo
from trainyard.rollout.slo import Look
from trainyard.rollout.state import Arm, State
from trainyard.rollout.target import Target
from trainyard.rollout.verdict import CONSECUTIVE, Evidence, Outcome, Verdict

_MARGIN, _ALPHA, _LOOK_S = 0.02, 0.01, 5.0


class Soak:
    """Watches for failures in a row, and for a failure rate past the former champion's plus margin.

    The latter is a likelihood ratio of twice that rate against that rate itself, an e-process as
    well: with nothing wrong it crosses 1/alpha with probability alpha at most, ever.
    """

    def __init__(self, target: Target, state: State, spec: deploy.DeploySpec) -> None:
        strategy = spec.strategy if isinstance(spec.strategy, deploy.Evidence) else None
        margin = strategy.margin if strategy else _MARGIN
        self.look_s = min(strategy.look_s if strategy else _LOOK_S, spec.soak_s)
        self._alpha = strategy.alpha if strategy else _ALPHA
        self._target = target
        self._placed = state.candidate
        self._boot, self._cursor = state.boot, state.cursor
        self._limit = min(0.45, _champion_rate(state.evidence) + margin)
        self._slo = spec.slo
        self._seen: list[Outcome] = []
        self._burnt: dict[str, list[Look]] = {}
        self._log_e = 0.0
        self._row = 0

    def breach(self, now: float) -> str | None:
        """Return what ends the soak, if anything; `now` is Unix time in seconds."""
        self._boot, self._cursor, records = looks.read(self._target, self._boot, self._cursor)
        digest = self._placed.version.digest
        # only what it answered as champion, from real users
        fresh = [
            looks.outcome(record, digest)
            for record in records
            if (record["digest"], record["variant"]) == (digest, "champion")
            and record["source"] in looks.COMPARED
        ]
        for outcome in fresh:
            self._take(outcome)
        found = self._target.ready(self._placed.slot)
        if not found.alive:
            return f"the new champion ended: {found.why}"
        if self._row >= CONSECUTIVE:
            return f"{self._row} failed or empty answers of the new champion in a row"
        if self._log_e > math.log(1 / self._alpha):
            return (
                f"{self._bad} of {len(self._seen)} answers failed, past {self._limit:.1%}; "
                f"e-value {math.exp(min(600.0, self._log_e)):.3g} is past {1 / self._alpha:g}"
            )
        return self._burns(fresh, now)

    def _burns(self, fresh: Sequence[Outcome], now: float) -> str | None:
        """Return the first alarm of an error budget that rings, if one does."""
        for objective in slo.objectives(self._slo) if self._slo else ():
            burnt = self._burnt.setdefault(objective.name, [])
            burnt.append(Look(now, len(fresh), sum(map(objective.is_bad, fresh))))
            assert self._slo is not None
            rings = slo.alarm(burnt, now, objective, self._slo.min_requests)
            if rings is not None:
                return rings
        return None

    def _take(self, outcome: Outcome) -> None:
        self._seen.append(outcome)
        bad = outcome.failed or bool(outcome.flags)
        worse = min(0.9, 2 * self._limit)
        self._log_e += math.log(worse / self._limit if bad else (1 - worse) / (1 - self._limit))
        self._row = self._row + 1 if outcome.failed or "empty" in outcome.flags else 0

    @property
    def _bad(self) -> int:
        return sum(o.failed or bool(o.flags) for o in self._seen)

    def verdict(self, why: str | None) -> Verdict:
        """The look just taken, for the record."""
        return Verdict(
            decision="abort" if why else "wait",
            reason=why or self.summary(),
            e_value=math.exp(min(600.0, self._log_e)),
        )

    def summary(self) -> str:
        return f"{self._bad} of {len(self._seen)} answers failed or were bad in the soak"

    def arm(self) -> Arm:
        return looks.arm(self._seen)


def _champion_rate(evidence: Evidence) -> float:
    """Failures and flags of the former champion, as a share of its answers."""
    hits = n = 0.0
    for stratum in (evidence.live, evidence.replay):
        for name, bet in stratum.bets.items():
            if not name.startswith("slower"):
                hits += bet.champion_hits
                n = max(n, bet.champion_n)
    return min(1.0, hits / n) if n else 0.0
