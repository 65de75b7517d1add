"""The state machine of a rollout: one step at a time, the same on every target.

The state is on disk before each action. A controller that dies leaves the champion with all traffic
once its lease runs out; whoever begins the same rollout again goes on where it stopped.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard.errors import Refused, TrainyardError, Waiting
from trainyard.recipe import deploy
from trainyard.recipe.deploy import BlueGreen, Canary, DeploySpec
from trainyard.rollout import looks, soak, verdict
from trainyard.rollout.looks import Watch
from trainyard.rollout.pairs import Judge
from trainyard.rollout.replay import Replay
from trainyard.rollout.state import (
    ACTIVE,
    GOING,
    Command,
    Phase,
    Placed,
    State,
    StepRecord,
    Store,
    lock,
    unlock,
)
from trainyard.rollout.target import Slot, Target, Terms
from trainyard.rollout.verdict import Evidence

logger = logging.getLogger(__name__)

START, SHADOW, PROMOTE, SOAK = "start", "shadow", "100 %", "soak"
APPROVE = "approve "
"""Begins the name of a step that asks a person whether the next one may begin."""


class Aborted(Exception):
    """Ends a step from within; never leaves this module."""


class Rollout:
    """A rollout that this process controls."""

    def __init__(
        self, target: Target, spec: DeploySpec, state: State, replay: Sequence[Mapping[str, Any]]
    ) -> None:
        self.target = target
        self.state = state
        self._spec = spec
        self._store = Store(target.folder)
        self._replay = Replay(replay)
        self.prove: Callable[[], object] = lambda: None
        """Called before the start and before each rise of the weight; raises to end the rollout."""
        self.judge: Judge | None = None
        """Compares pairs of answers, where the strategy asks for it."""

    @property
    def plan(self) -> tuple[str, ...]:
        return self.state.plan

    @property
    def next_step(self) -> str | None:
        """Name of the step that `step` would run; None when the rollout has ended."""
        if self.state.phase not in GOING or len(self.state.done) >= len(self.plan):
            return None
        return self.plan[len(self.state.done)]

    @property
    def question(self) -> str | None:
        """What a person is asked before the next step, in words; None when nobody is."""
        name = self.next_step
        if name is None or not name.startswith(APPROVE) or self._answer(name) is not None:
            return None
        last = next(r for r in reversed(self.state.done) if not r.step.startswith(APPROVE))
        return (
            f"may {self.state.candidate.version.model} go to {name.removeprefix(APPROVE)}? "
            f"{last.step}: {last.reason}"
        )

    @property
    def alpha(self) -> float | None:
        """An e-value past 1 / alpha aborts; None for a strategy that compares nothing."""
        strategy = self._strategy()
        return strategy.alpha if strategy else None

    @property
    def promoted(self) -> bool:
        return self.state.phase == "done"

    def _save(self, **changes: Any) -> None:
        self.state = self._store.save(self.state.model_copy(update=changes))

    def step(self) -> StepRecord:
        """Run the next step to its decision. Any interruption gives the champion all traffic.

        Raises Waiting, with the next command, while a person has to answer first.
        """
        name = self.next_step
        if name is None:
            raise Refused(f"rollout {self.state.id} has ended: {self.state.phase}")
        lock(self.target.folder)
        began = time.monotonic()
        if (question := self.question) is not None:
            self.park()
            raise Waiting(f"{question}; {self.how_to_answer}, then repeat this")
        try:
            record = self._run(name, began)
        except BaseException as error:
            self._end(f"interrupted: {type(error).__name__} {error}")
            raise
        logger.info("%s: %s, %s", name, record.decision, record.reason)
        done = (*self.state.done, record)
        if record.decision in ("abort", "roll_back"):
            # with its verdict, in one write: nobody may take it up behind an aborted step
            self._save(done=done, phase=self._ending())
            self._end(record.reason)
        else:
            self._save(done=done)
            if name.startswith(APPROVE):
                self._store.forget_command()
            self.finish_if_done()
        return record

    def _run(self, name: str, began: float) -> StepRecord:
        try:
            if name != SOAK:
                self._prove()
            match name:
                case "start":
                    return self._start(began)
                case "100 %":
                    return self._promote(began)
                case "soak":
                    return self._soak(began)
                case _ if name.startswith(APPROVE):
                    return self._approved(name, began)
                case _:
                    return self._compare(name, began)
        except Aborted as end:
            decision = "roll_back" if self.state.phase == "soaking" else "abort"
            return self._record(name, began, decision, str(end))

    def _prove(self) -> None:
        try:
            self.prove()
        except (TrainyardError, OSError) as error:
            raise Aborted(str(error)) from error

    def _record(
        self, name: str, began: float, decision: str, reason: str, **rest: Any
    ) -> StepRecord:
        return StepRecord.model_validate(
            {
                "step": name,
                "weight": self.state.weight,
                "decision": decision,
                "reason": reason,
                "seconds": time.monotonic() - began,
                **rest,
            }
        )

    # the steps

    def _start(self, began: float) -> StepRecord:
        champion, candidate = self.state.champion, self.state.candidate
        if champion is not None and not self.target.ready(champion.slot).ready:
            self._bring_up(champion)
            self.target.set_weights({champion.slot: 100}, champion.slot)
        self._bring_up(candidate)
        if champion is not None:
            self._save(evidence=self._history(champion))
        reason = f"{candidate.version.model} is ready in {candidate.slot}"
        return self._record(START, began, "go_on", reason)

    def _bring_up(self, placed: Placed) -> None:
        self.target.start(placed.version, placed.slot)
        end = time.monotonic() + self._spec.ready_timeout_s
        while True:
            found = self.target.ready(placed.slot)
            if found.ready:
                return
            if not found.alive:
                raise Aborted(f"{placed.version.model} in {placed.slot}: {found.why}")
            if time.monotonic() > end:
                raise Aborted(
                    f"{placed.version.model} was not ready within "
                    f"{self._spec.ready_timeout_s:g} s: {found.why}"
                )
            self._obey()
            time.sleep(0.2)

    def _history(self, champion: Placed) -> Evidence:
        """What the gateway still knows of the champion alone, in blocks of one look."""
        strategy = self._strategy()
        if strategy is None:
            return Evidence()
        boot, cursor, records = looks.read(self.target, "", 0)
        self._save(boot=boot, cursor=cursor)
        evidence = Evidence()
        for block in looks.blocks(records, champion.version.digest, strategy.look_s):
            evidence = verdict.learn(evidence, block, looks.rules(strategy))
        return evidence

    def _strategy(self) -> deploy.Evidence | None:
        found = self._spec.strategy
        return found if isinstance(found, deploy.Evidence) else None

    def _compare(self, name: str, began: float) -> StepRecord:
        """Give the candidate what the step says, and watch both until there is a verdict."""
        strategy, champion = self._strategy(), self.state.champion
        assert strategy is not None
        assert champion is not None
        unseen = name == SHADOW
        self._save(weight=0.0 if unseen else float(name.removesuffix(" %")))
        shadow_pct = strategy.shadow_pct if isinstance(strategy, Canary | BlueGreen) else 0
        self._weigh(shadow_pct if unseen else 0)
        watch = Watch(self.target, self.state, self._spec, self._replay, self.judge)
        while True:
            self._obey()
            if self.state.hurried is not None:
                return self._record(
                    name, began, "go_on", f"asked for: {self.state.hurried}", **watch.arms()
                )
            if not self.target.renew(self._spec.lease_s):
                self._weigh(shadow_pct if unseen else 0)
            looked = watch.look()
            self._save(**looked.seen)
            looks.note(self.target.folder, self.state, watch.arms(), looked.verdict)
            if looked.verdict.decision != "wait":
                found = looked.verdict
                return self._record(
                    name,
                    began,
                    found.decision,
                    found.reason,
                    e_value=found.e_value,
                    metric=found.metric,
                    samples=found.samples,
                    replayed=watch.replayed,
                    **watch.arms(),
                )
            if time.monotonic() - began > strategy.step_timeout_s:
                raise Aborted(
                    f"not enough evidence within {strategy.step_timeout_s:g} s: "
                    f"{looked.verdict.reason}"
                )
            watch.feed()

    def _weigh(self, shadow_pct: float) -> None:
        champion, candidate = self.state.champion, self.state.candidate
        assert champion is not None
        weights: dict[Slot, float] = {
            candidate.slot: self.state.weight,
            champion.slot: 100 - self.state.weight,
        }
        terms = Terms(self._spec.lease_s, shadow_pct, self.state.salt)
        self.target.set_weights(weights, champion.slot, terms)

    def _promote(self, began: float) -> StepRecord:
        candidate, champion = self.state.candidate, self.state.champion
        self._save(phase="promoting", weight=100.0)
        self.target.set_weights({candidate.slot: 100}, candidate.slot)
        self._store.deploy(candidate, champion or self._still_previous())
        reason = f"{candidate.version.model} is champion"
        return self._record(PROMOTE, began, "promoted", reason)

    def _still_previous(self) -> Placed | None:
        """Return who was before the champion that is only brought up again."""
        found = self._store.deployment()
        if found is None or found.champion.version.digest != self.state.candidate.version.digest:
            return None
        return found.previous

    def _soak(self, began: float) -> StepRecord:
        """Keep the former champion warm, and take it back if the new one does worse alone."""
        self._save(phase="soaking")
        watch = soak.Soak(self.target, self.state, self._spec)
        end = time.monotonic() + self._spec.soak_s
        while True:
            self._obey()
            why = watch.breach(time.time())
            looks.note(self.target.folder, self.state, {"canary": watch.arm()}, watch.verdict(why))
            if why is not None:
                raise Aborted(why)
            if time.monotonic() >= end:
                return self._record(SOAK, began, "go_on", watch.summary(), champion=watch.arm())
            time.sleep(min(watch.look_s, max(0.0, end - time.monotonic())))

    # what people say

    def park(self, by: str = "") -> None:
        """Let go of the rollout until a person has answered: the champion serves everybody.

        An answer may take days. Nobody would watch the candidate meanwhile, so no user gets it and
        no lease runs; both engines stay up, and the evidence is kept. `by` is the flow run that is
        suspended for it.
        """
        champion = self.state.champion
        assert champion is not None
        self._save(phase="waiting", weight=0.0, asked_by=by)
        self.target.set_weights({champion.slot: 100}, champion.slot)
        unlock(self.target.folder)

    @property
    def how_to_answer(self) -> str:
        home = self.target.folder.parents[1]
        where = "" if home == Path(".trainyard").absolute() else f" --home {home}"
        name = self.target.name
        return f"answer with `trainyard rollout {name} approve --why WORDS{where}`, or abort"

    def answer(self, yes: bool, why: str) -> None:
        """Take a person's answer to `question`."""
        name = self.next_step
        assert name is not None
        self._store.command("approve" if yes else "abort", why, name)

    def _answer(self, name: str) -> Command | None:
        """Return the word that was left for the approval `name`."""
        if self.state.hurried is not None:
            return Command(verb="promote", why=self.state.hurried)
        found = self._store.read_command()
        if found is None or found.verb not in ("approve", "abort", "promote"):
            return None
        return None if found.verb == "approve" and found.step != name else found

    def _approved(self, name: str, began: float) -> StepRecord:
        found = self._answer(name)
        assert found is not None
        self._save(asked_by="")
        if found.verb == "abort":
            self._store.forget_command()
            raise Aborted(f"asked for: {found.why}")
        if found.verb == "promote":
            self._save(hurried=found.why)
        self._save(phase="running")
        for placed in (self.state.champion, self.state.candidate):
            if placed is not None and not self.target.ready(placed.slot).ready:
                self._bring_up(placed)
        # what the champion answered alone meanwhile compares with nothing
        boot, cursor, _ = looks.read(self.target, self.state.boot, self.state.cursor)
        self._save(boot=boot, cursor=cursor)
        return self._record(name, began, "go_on", f"approved: {found.why}")

    # the ends

    def _obey(self) -> None:
        """Do what a person asked for by `rollout.command`."""
        while (found := self._store.read_command()) is not None:
            if found.verb == "approve" and self.state.phase == "running":
                return  # of the approval that this very step is
            if found.verb != "pause":
                self._store.forget_command()
            if found.verb == "abort":
                raise Aborted(f"asked for: {found.why}")
            if found.verb == "promote":
                self._save(hurried=found.why)
            if found.verb != "pause":
                return
            # paused: the canary keeps what it has, nothing is gathered until another word comes
            if self.state.phase == "running":
                self.target.renew(self._spec.lease_s)
            time.sleep(min(1.0, self._spec.lease_s / 4))

    def _ending(self) -> Phase:
        back = self.state.phase in ("promoting", "soaking", "rolling_back")
        return "rolling_back" if back else "aborting"

    def _end(self, why: str) -> None:
        """Give the champion everything in one change, and only then stop the candidate."""
        back = self._ending() == "rolling_back"
        self._save(phase=self._ending(), reason=why, weight=0.0)
        champion, candidate = self.state.champion, self.state.candidate
        if champion is not None:
            try:
                self.target.set_weights({champion.slot: 100}, champion.slot)
            except TrainyardError as error:
                # without a word from us the lease ends the canary, and a dead gateway serves nobody
                logger.warning("the champion gets its traffic back by the lease only: %s", error)
            if back:
                self._store.deploy(champion, None)
        if champion is None or champion.slot != candidate.slot:
            self.target.stop(candidate.slot)
        if self._store.deployment() is None:
            self.target.down()
        self._save(phase="rolled_back" if back else "aborted")
        unlock(self.target.folder)

    def finish_if_done(self) -> None:
        """After the last step, stop the former champion."""
        if self.state.phase not in GOING or self.next_step is not None:
            return
        champion, candidate = self.state.champion, self.state.candidate
        if champion is not None and champion.slot != candidate.slot:
            self.target.stop(champion.slot)
        self._save(phase="done", reason=self.state.done[-1].reason)
        unlock(self.target.folder)

    def abort(self, why: str) -> None:
        """Give the champion all traffic and stop the candidate."""
        if self.state.phase in ACTIVE:
            self._end(why)
