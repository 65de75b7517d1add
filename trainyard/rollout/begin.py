"""How a rollout begins: taken up where it was cut short, or planned anew."""

import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainyard.errors import Refused
from trainyard.recipe.deploy import Ab, BlueGreen, Canary, DeploySpec, Evidence
from trainyard.rollout.state import ACTIVE, ENDING, Placed, State, StepRecord, Store, lock, unlock
from trainyard.rollout.steps import APPROVE, PROMOTE, SHADOW, SOAK, START, Rollout
from trainyard.rollout.target import ServedVersion, Slot, Target

logger = logging.getLogger(__name__)


def begin(
    target: Target,
    served: ServedVersion,
    *,
    spec: DeploySpec,
    replay: Sequence[Mapping[str, Any]] = (),
    by: str = "",
) -> Rollout:
    """Become the controller of a rollout of `served`; take up the same one if it was cut short.

    A rollout of another version that its controller left behind is aborted first. Raises Refused
    while another process controls one, and to the flow run `by` once, when what it had asked a
    person about was ended meanwhile: its answer opens nothing. `replay` are bodies of chat
    completions, without `model`.
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
    if old is not None and by and old.asked_by == by and old.candidate.version == served:
        store.save(old.model_copy(update={"asked_by": ""}))
        unlock(target.folder)
        raise Refused(
            f"the rollout of {served.model} that waited for this answer was ended meanwhile: "
            f"{old.reason}; run the release again to begin another one"
        )
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
        plan = tuple(_with_approvals(plan, spec))
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
        case Ab(split_pct=split):
            return [f"{split:g} %"]
        case BlueGreen():
            return [SHADOW]
        case _:
            return []


def _with_approvals(plan: Sequence[str], spec: DeploySpec) -> Iterator[str]:
    asked = spec.strategy.approve_at if isinstance(spec.strategy, Evidence) else ()
    names = {f"{weight:g} %" for weight in asked}
    for name in plan:
        if name in names:
            yield f"{APPROVE}{name}"
        yield name


def is_serving(target: Target, slot: Slot) -> bool:
    if not target.ready(slot).ready:
        return False
    try:
        target.endpoint()
    except LookupError:
        return False
    return True
