"""Looks at the evidence: the gateway's records become outcomes, blocks and a verdict."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainyard import files
from trainyard.recipe import deploy
from trainyard.rollout import pairs, slo, verdict
from trainyard.rollout.pairs import Bench, Judge
from trainyard.rollout.replay import CONCURRENCY, Replay
from trainyard.rollout.state import Arm, State
from trainyard.rollout.target import Target
from trainyard.rollout.verdict import Outcome, Rules, Verdict
from trainyard.rollout.votes import Vote

PAGE = 5000
"""Records that the gateway gives at once."""

COMPARED = ("live", "shadow", "replay")
"""Sources of records that compare fairly; what a client forced, or what feedback says, does not."""

LOOKS = "looks.jsonl"

_NOT_READY_LOOKS = 3


class Look(NamedTuple):
    verdict: Verdict
    seen: dict[str, Any]
    """Fields of the rollout's state that have changed."""


def rules(strategy: deploy.Evidence) -> Rules:
    return Rules(
        min_requests=strategy.min_requests,
        requests=strategy.requests,
        margin=strategy.margin,
        alpha=strategy.alpha,
        latency_tolerance=strategy.latency_tolerance,
    )


def read(target: Target, boot: str, cursor: int) -> tuple[str, int, list[dict[str, Any]]]:
    """Read all records from `cursor` on; a restarted gateway is read from its beginning."""
    records: list[dict[str, Any]] = []
    while True:
        found = target.observe(cursor)
        if found.boot != boot:
            restarted, boot = bool(boot), found.boot
            if restarted and cursor:
                cursor = 0
                continue
        records += found.records
        cursor = found.next
        # a page that is not full was the last one; users meanwhile send more without end
        if len(found.records) < PAGE:
            return boot, cursor, records


def outcome(record: dict[str, Any], canary: str) -> Outcome:
    return Outcome(
        canary=record["digest"] == canary,
        failed=not record["ok"],
        seconds=record["seconds"],
        flags=tuple(record["flags"]),
        # a copy is a random user's request: it compares with what users got at the same time
        source="replay" if record["source"] == "replay" else "live",
        request_id=record["request_id"],
    )


def blocks(
    records: Sequence[dict[str, Any]], digest: str, look_s: float
) -> Iterator[list[Outcome]]:
    """One version's live answers, in blocks of `look_s` seconds, oldest first."""
    block: list[Outcome] = []
    end: float | None = None
    for record in records:
        if record["digest"] != digest or record["source"] != "live":
            continue
        if end is None or record["at"] >= end:
            if block:
                yield block
            block, end = [], record["at"] + look_s
        block.append(outcome(record, ""))
    if block:
        yield block


def arm(outcomes: Sequence[Outcome]) -> Arm:
    seconds = sorted(o.seconds for o in outcomes if not o.failed)
    return Arm(
        requests=len(outcomes),
        errors=sum(o.failed for o in outcomes),
        flagged=sum(bool(o.flags) for o in outcomes),
        p50_s=seconds[len(seconds) // 2] if seconds else None,
        p95_s=seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))] if seconds else None,
    )


class Watch:
    """One step's view of the traffic."""

    def __init__(
        self,
        target: Target,
        state: State,
        spec: deploy.DeploySpec,
        replay: Replay,
        judge: Judge | None = None,
    ) -> None:
        strategy = spec.strategy
        assert isinstance(strategy, deploy.Evidence)
        assert state.champion is not None
        self._target = target
        self._strategy = strategy
        self._slo = spec.slo
        self._kept, self._votes, self._pairs = state.kept, state.votes, state.judged
        # nobody votes on a replayed prompt
        votes = isinstance(strategy, deploy.Ab)
        self._replay = replay if strategy.replay and not votes else Replay(())
        self._slot = state.candidate.slot
        self._digests = (state.candidate.version.digest, state.champion.version.digest)
        self._bench: Bench | None = None
        if judge is not None and strategy.judged is not None:
            self._bench = Bench(judge, strategy.judged, target.folder, self._digests)
        self._evidence, self._boot, self._cursor = state.evidence, state.boot, state.cursor
        self._seen: list[Outcome] = []
        self._began = time.monotonic()
        self._not_ready = 0
        self.replayed = 0

    def look(self) -> Look:
        self._boot, self._cursor, records = read(self._target, self._boot, self._cursor)
        mine = [record for record in records if record["digest"] in self._digests]
        fresh = [outcome(r, self._digests[0]) for r in mine if r["source"] in COMPARED]
        self._seen += fresh
        given = rules(self._strategy)
        self._evidence = verdict.take(self._evidence, fresh, given)
        canary = sum(o.canary for o in self._seen)
        found = self._guard() or self._judged(verdict.judge(self._evidence, given, canary), mine)
        if self._slo is not None:
            self._kept = self._kept.take(fresh, self._slo)
            found = slo.hold(found, self._kept, self._slo, given.alpha)
        if self._bench is not None and self._strategy.judged is not None:
            self._pairs = self._bench.look(self._pairs)
            found = pairs.hold(found, self._pairs, self._strategy.judged)
        seen = {
            "judged": self._pairs,
            "evidence": self._evidence,
            "kept": self._kept,
            "votes": self._votes,
            "boot": self._boot,
            "cursor": self._cursor,
        }
        return Look(found, seen)

    def _judged(self, found: Verdict, records: Sequence[dict[str, Any]]) -> Verdict:
        """The comparison's verdict; in an A/B test users decide what the comparison lets pass."""
        strategy = self._strategy
        if not isinstance(strategy, deploy.Ab):
            return found
        cast = [
            Vote(record["digest"] == self._digests[0], record["score"])
            for record in records
            if record["source"] == "feedback"
        ]
        self._votes = self._votes.take(cast, strategy.gain)
        if found.decision == "abort":
            return found
        return self._votes.judge(strategy.min_votes, strategy.gain, strategy.alpha)

    def _guard(self) -> Verdict | None:
        state = self._target.ready(self._slot)
        if not state.alive:
            return Verdict(decision="abort", reason=state.why, metric="crash")
        if state.restarts:
            reason = f"the engine crashed and restarted, {state.restarts} times so far"
            return Verdict(decision="abort", reason=reason, metric="crash")
        self._not_ready = 0 if state.ready else self._not_ready + 1
        if self._not_ready >= _NOT_READY_LOOKS:
            reason = f"not ready at {self._not_ready} looks in a row: {state.why}"
            return Verdict(decision="abort", reason=reason, metric="not ready")
        return None

    def arms(self) -> dict[str, Arm]:
        return {
            "canary": arm([o for o in self._seen if o.canary]),
            "champion": arm([o for o in self._seen if not o.canary]),
        }

    def feed(self) -> None:
        """Let time pass until the next look, with replayed prompts where users send too few."""
        end = time.monotonic() + self._strategy.look_s
        missing = self._strategy.requests - sum(o.canary for o in self._seen)
        unjudged = self._unjudged()
        missing = max(missing, unjudged)
        if not (self._replay and (unjudged or self._too_few())):
            time.sleep(self._strategy.look_s)
            return
        endpoint, headers = self._target.endpoint(), self._target.replay_headers()
        while time.monotonic() < end and missing > 0:
            count = min(CONCURRENCY, missing)
            self.replayed += self._replay.pairs(endpoint, self._target.name, headers, count)
            missing -= count

    def _unjudged(self) -> int:
        """Pairs that jurors still want and that nobody has answered yet."""
        spec = self._strategy.judged
        if self._bench is None or spec is None:
            return 0
        return max(0, spec.min_pairs - max(len(self._pairs.asked), self.replayed // 2))

    def _too_few(self) -> bool:
        """Whether, at the rate seen, users would not bring the least evidence in time."""
        live = sum(o.canary and o.source == "live" for o in self._seen)
        elapsed = max(time.monotonic() - self._began, 1e-3)
        expected = live / elapsed * self._strategy.step_timeout_s
        return expected < 2 * self._strategy.min_requests


def note(folder: Path, state: State, arms: dict[str, Arm], found: Verdict) -> None:
    """Put one look on record, for reports; in the soak there is no champion beside."""
    row = {
        "at": time.time(),
        "rollout": state.id,
        "weight": state.weight,
        "e_value": found.e_value,
        "decision": found.decision,
        "reason": found.reason,
        **{name: value.model_dump() for name, value in arms.items()},
    }
    files.append_row(folder / LOOKS, row)


MOST_SHOWN = 400


def noted(folder: Path, rollout: str) -> list[dict[str, Any]]:
    """Looks of one rollout, oldest first: at most 400, evenly spaced, and the last."""
    mine = [row for row in files.rows_of(folder / LOOKS) if row["rollout"] == rollout]
    every = max(1, math.ceil(len(mine) / MOST_SHOWN))
    return mine[::-1][::every][::-1]
