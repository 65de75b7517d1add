"""The state machine of a rollout: one step at a time, the same on every target.

The state is on disk before each action. A controller that dies leaves the champion with all traffic
once its lease runs out; whoever begins the same rollout again goes on where it stopped.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainyard.errors import Refused, TrainyardError
from trainyard.recipe import deploy
from trainyard.recipe.deploy import BlueGreen, Canary, DeploySpec
from trainyard.rollout import looks, soak, verdict
from trainyard.rollout.looks import Watch
from trainyard.rollout.replay import Replay
from trainyard.rollout.state import (
    ACTIVE,
    ENDING,
    GOING,
    Phase,
    Placed,
    State,
    StepRecord,
    Store,
    lock,
    required,
    unlock,
)
from trainyard.rollout.target import ServedVersion, Slot, Target
from trainyard.rollout.verdict import Evidence

logger = logging.getLogger(__name__)

START, SHADOW, PROMOTE, SOAK = "start", "shadow", "100 %", "soak"


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
    def promoted(self) -> bool:
        return self.state.phase == "done"

    def _save(self, **changes: Any) -> None:
        self.state = self._store.save(self.state.model_copy(update=changes))

    def step(self) -> StepRecord:
        """Run the next step to its decision. Any interruption gives the champion all traffic."""
        name = self.next_step
        if name is None:
            raise Refused(f"rollout {self.state.id} has ended: {self.state.phase}")
        lock(self.target.folder)
        began = time.monotonic()
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
        watch = Watch(self.target, self.state, strategy, self._replay)
        while True:
            self._obey()
            if self.state.hurried is not None:
                return self._record(
                    name, began, "go_on", f"asked for: {self.state.hurried}", **watch.arms()
                )
            if not self.target.renew(self._spec.lease_s):
                self._weigh(shadow_pct if unseen else 0)
            looked = watch.look()
            self._save(evidence=looked.evidence, boot=looked.boot, cursor=looked.cursor)
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
        self.target.set_weights(
            weights,
            champion.slot,
            lease_s=self._spec.lease_s,
            shadow_pct=shadow_pct,
            salt=self.state.salt,
        )

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
            why = watch.breach()
            if why is not None:
                raise Aborted(why)
            if time.monotonic() >= end:
                return self._record(SOAK, began, "go_on", watch.summary(), champion=watch.arm())
            time.sleep(min(watch.look_s, max(0.0, end - time.monotonic())))

    # the ends

    def _obey(self) -> None:
        """Do what a person asked for by `rollout.command`."""
        while (found := self._store.read_command()) is not None:
            verb, why = found
            if verb != "pause":
                self._store.forget_command()
            if verb == "abort":
                raise Aborted(f"asked for: {why}")
            if verb == "promote":
                self._save(hurried=why)
            if verb != "pause":
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


def begin(
    target: Target,
    served: ServedVersion,
    *,
    spec: DeploySpec,
    replay: Sequence[Mapping[str, Any]] = (),
) -> Rollout:
    """Become the controller of a rollout of `served`; take up the same one if it was cut short.

    A rollout of another version that its controller left behind is aborted first. Raises Refused
    while another process controls one. `replay` are bodies of chat completions, without `model`.
    """
    lock(target.folder)
    store = Store(target.folder)
    old = store.state()
    if old is not None and old.phase in ACTIVE:
        if old.candidate.version == served and old.phase not in ENDING:
            logger.info("taking up rollout %s after %s", old.id, [r.step for r in old.done])
            again = Rollout(target, spec, old, replay)
            again.finish_if_done()
            return again
        Rollout(target, spec, old, replay).abort(old.reason or f"left behind for {served.model}")
        lock(target.folder)
    store.forget_command()
    state = store.save(_first_state(target, store, served, spec))
    rollout = Rollout(target, spec, state, replay)
    if state.phase == "done":
        unlock(target.folder)
    return rollout


def _first_state(target: Target, store: Store, served: ServedVersion, spec: DeploySpec) -> State:
    deployment = store.deployment()
    champion = deployment.champion if deployment is not None else None
    plan: tuple[str, ...] = (START, PROMOTE)
    slot: Slot = "blue"
    done: tuple[StepRecord, ...] = ()
    if champion is not None and champion.version.digest == served.digest:
        # nothing to compare with: it serves, or it is brought up again
        slot, champion, plan = champion.slot, None, (START, PROMOTE)
        if is_serving(target, slot):
            reason = f"{served.model} is champion already"
            done = (
                StepRecord(step=START, weight=100, decision="already", reason=reason, seconds=0),
            )
            plan = (START,)
    elif champion is not None:
        slot = "green" if champion.slot == "blue" else "blue"
        plan = (START, *_comparisons(spec), PROMOTE, *((SOAK,) if spec.soak_s else ()))
    return State(
        id=secrets.token_hex(4),
        phase="done" if done else "running",
        plan=plan,
        candidate=Placed(version=served, slot=slot),
        champion=champion,
        salt=secrets.token_hex(8),
        started_at=time.time(),
        done=done,
        reason=done[0].reason if done else "",
    )


def _comparisons(spec: DeploySpec) -> list[str]:
    match spec.strategy:
        case Canary(steps=steps, shadow_pct=shadow_pct):
            return [*([SHADOW] if shadow_pct else []), *(f"{weight:g} %" for weight in steps)]
        case BlueGreen():
            return [SHADOW]
        case _:
            return []


def is_serving(target: Target, slot: Slot) -> bool:
    if not target.ready(slot).ready:
        return False
    try:
        target.endpoint()
    except LookupError:
        return False
    return True


def taken_up(target: Target, spec: DeploySpec, replay: Sequence[Mapping[str, Any]] = ()) -> Rollout:
    """Return the rollout whose state is on disk, for a step that runs in another process."""
    state = required(Store(target.folder).state(), target.folder)
    return Rollout(target, spec, state, replay)
