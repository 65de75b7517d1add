"""Which answer is better? Jurors compare champion and candidate on the same question, unseen.

The gateway keeps both answers to what was copied to the candidate, or replayed. Each pair is judged
in both orders, in a thread of its own: a slow juror delays no look. The lost shares are one more
e-process: a bettor against "the candidate loses no more than half of them and the margin".
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError
from trainyard.files import rows_of
from trainyard.recipe.base import Frozen
from trainyard.recipe.strategy import JudgedSpec
from trainyard.rollout.betting import Capital
from trainyard.rollout.verdict import Verdict

logger = logging.getLogger(__name__)

LOGS = ("pairs.old.jsonl", "pairs.jsonl")
AT_ONCE = 8
"""Pairs that are given to the jurors together."""
_SAMPLES = 5


class Pair(Frozen):
    """Two answers to one question, redacted as the log is."""

    request_id: str
    messages: tuple[dict[str, Any], ...]
    candidate: str
    champion: str


Judge = Callable[[Sequence[Pair]], Sequence[float | None]]
"""Share of the verdicts that each pair's candidate won, in [0, 1]; None where there is none."""


class Judged(Frozen):
    """What the jurors said since the rollout began."""

    n: int = 0
    won: float = 0.0
    """Sum of the shares that the candidate won."""

    asked: tuple[str, ...] = ()
    """Request ids of the pairs that the jurors were given, with a usable verdict or not."""

    lost: tuple[str, ...] = ()
    """Request ids of some pairs that the candidate lost."""

    capital: Capital = Capital()

    def take(
        self, pairs: Sequence[Pair], shares: Sequence[float | None], spec: JudgedSpec
    ) -> "Judged":
        known = [(p, s) for p, s in zip(pairs, shares, strict=True) if s is not None]
        lost = [pair.request_id for pair, share in known if share < 0.5]
        return Judged(
            n=self.n + len(known),
            won=self.won + sum(share for _, share in known),
            asked=(*self.asked, *(pair.request_id for pair in pairs)),
            lost=(*self.lost, *lost)[-_SAMPLES:],
            capital=self.capital.take([1 - share for _, share in known], 0.5 + spec.margin),
        )

    @property
    def words(self) -> str:
        rate = f"wins {self.won / self.n:.1%} of {self.n}" if self.n else "has no verdict of 0"
        return f"the candidate {rate} judged pairs; e-value {self.capital.e_value:.3g}"


def hold(found: Verdict, judged: Judged, spec: JudgedSpec) -> Verdict:
    """Abort what the jurors like less; without enough of their verdicts nothing goes on."""
    if found.decision != "abort" and judged.capital.e_value > 1 / spec.alpha:
        return Verdict(
            decision="abort",
            reason=f"{judged.words} is past {1 / spec.alpha:g}, margin {spec.margin:g}",
            e_value=judged.capital.e_value,
            metric="judged pairs",
            samples=judged.lost,
        )
    decision, said = found.decision, judged.words
    if decision == "go_on" and judged.n < spec.min_pairs:
        decision, said = "wait", f"{said}; {spec.min_pairs} are wanted, {len(judged.asked)} asked"
    return found.model_copy(update={"decision": decision, "reason": f"{found.reason}; {said}"})


def read(folder: Path, candidate: str, champion: str) -> Iterator[Pair]:
    """Pairs that both versions answered, oldest first; a question asked more often counts once."""
    half: dict[str, dict[str, dict[str, Any]]] = {}
    for name in LOGS:
        for row in rows_of(folder / name):
            sides = half.setdefault(str(row.get("request_id")), {})
            sides[str(row.get("version"))] = row
            if {candidate, champion} <= sides.keys():
                mine, its = sides[candidate], sides[champion]
                del half[str(row["request_id"])]
                if all(isinstance(message, dict) for message in mine["messages"]):
                    yield Pair(
                        request_id=str(row["request_id"]),
                        messages=tuple(mine["messages"]),
                        candidate=mine["answer"],
                        champion=its["answer"],
                    )


class Bench:
    """The jurors at work: at most one batch at a time, and never more pairs than `max_pairs`."""

    def __init__(self, judge: Judge, spec: JudgedSpec, folder: Path, digests: tuple[str, str]):
        self._judge = judge
        self._spec = spec
        self._folder = folder
        self._digests = digests
        self._thread: threading.Thread | None = None
        self._done: list[tuple[Sequence[Pair], Sequence[float | None]]] = []

    def look(self, judged: Judged) -> Judged:
        """Take what is judged by now, and hand over what is new."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None:
            done, self._done = self._done, []
            for pairs, shares in done:
                judged = judged.take(pairs, shares, self._spec)
            left = self._spec.max_pairs - len(judged.asked)
            if left > 0:
                self._begin(set(judged.asked), min(AT_ONCE, left))
        return judged

    def _begin(self, known: set[str], most: int) -> None:
        every = read(self._folder, *self._digests)
        batch = list(islice((pair for pair in every if pair.request_id not in known), most))
        if batch:
            self._thread = threading.Thread(target=self._work, args=(batch,), daemon=True)
            self._thread.start()

    def _work(self, batch: Sequence[Pair]) -> None:
        try:
            shares = self._judge(batch)
        except TrainyardError as error:  # a juror that is away ends no rollout
            logger.warning("pairs are not judged: %s", error)
            shares = [None] * len(batch)
        self._done.append((batch, shares))
