"""Stage `rollout`: from a registered version to traffic, and to the alias that says so."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from trainyard import approval, attestation, files, rollout
from trainyard.data.read import read_samples
from trainyard.environment import PRODUCTION, Environment
from trainyard.errors import Refused, TrainyardError
from trainyard.parity.record import read as read_parity
from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import TaskSuite
from trainyard.registry.mirror import open_registries
from trainyard.release.job import Job
from trainyard.release.judged import judge_of
from trainyard.release.version import Registered
from trainyard.rollout import Probe, Rollout, ServedVersion, StepRecord
from trainyard.rollout.looks import noted

REPLAYED = 200
PROBE = "probe.json"

logger = logging.getLogger(__name__)


class Served(Frozen):
    endpoint: str
    phase: str
    reason: str
    skipped: bool

    @property
    def words(self) -> str:
        return self.reason


def begin(
    job: Job, registered: Registered, where: Environment = PRODUCTION, by: str = ""
) -> Rollout:
    """Become the controller of this version's rollout.

    Raises Refused for a version that was altered, did not pass, or is not signed where it must be,
    and while another process controls a rollout. The same is proven before each rise of its weight.
    Raises Waiting or Refused without the approval that the recipe asks for. `by` is the flow run.
    """
    prove = partial(
        attestation.check,
        registered.folder,
        registered.manifest_sha256,
        sign=job.recipe.register.sign,
    )
    prove()
    approval.check(job, registered.digest, where.serves)
    spec = where.deploy_of(job.recipe.deploy)
    target = rollout.open_target(spec, job.recipe.name, where.home(job.home))
    probe = first_probe(registered)
    files.write_json(job.folder / PROBE, probe.model_dump(mode="json"))
    served = ServedVersion(
        name=registered.name,
        digest=registered.digest,
        adapter=(registered.folder / "adapter").absolute(),
        base=job.base().path.absolute(),
        probe=probe,
    )
    controlled = rollout.begin(target, served, spec=spec, replay=list(replay(job)), by=by)
    controlled.prove = prove
    judged = getattr(spec.strategy, "judged", None)
    if judged is not None:
        controlled.judge = judge_of(job, judged.suite)
    return controlled


def end(
    job: Job,
    registered: Registered,
    controlled: Rollout,
    who: str,
    where: Environment = PRODUCTION,
) -> Served:
    """Move the alias to where the traffic is. Raises Refused when the version was sent back."""
    state = controlled.state
    record = {"phase": state.phase, "reason": f"{registered.served_name}: {state.phase}"}
    steps = [step.model_dump(mode="json") for step in state.done]
    seen = {"looks": noted(controlled.target.folder, state.id), "alpha": controlled.alpha}
    files.write_json(job.folder / "rollout.json", record | seen | {"steps": steps})
    if state.phase != "done":
        raise Refused(
            f"the rollout of {registered.served_name} ended {state.phase}: {state.reason}"
        )
    registry = open_registries(job.recipe.register, job.home)
    why, place = f"{who} of {job.run_id}", where.serves
    given = approval.granted(job.home, registered.name, registered.digest)
    if given is not None:
        who, why = given.who, f"{why}, approved: {given.why}"
    if place == "production":
        registry.promote(registered.name, registered.digest, who=who, why=why)
    else:
        registry.set_alias(registered.name, place, registered.digest, who=who, why=why)
    already = any(step.decision == "already" for step in state.done)
    if not already and place == "production":
        _push(job, registered)
    endpoint = f"{controlled.target.endpoint()}/v1"
    weights = dict.fromkeys(f"{step.weight:g} %" for step in state.done if step.weight)
    way = ", ".join(weights)
    rank = "champion" if place == "production" else place
    reason = state.reason if already else f"{registered.served_name} is {rank}, by way of {way}"
    return Served(endpoint=endpoint, phase=state.phase, reason=reason, skipped=already)


def _push(job: Job, registered: Registered) -> None:
    spec = job.recipe.register.hub
    if spec is not None:
        from trainyard import hub  # noqa: PLC0415  (opt-in)

        try:
            logger.info("pushed to %s", hub.push(spec, registered.folder))
        except TrainyardError as error:  # it serves: a hub does not undo that
            logger.warning("not pushed: %s", error)


def replay(job: Job) -> Iterator[dict[str, Any]]:
    """Yield held-out questions as chat requests, for steps that see too little traffic."""
    for suite in job.recipe.evaluate.suites:
        if isinstance(suite, TaskSuite):
            for sample in islice(read_samples(suite.data), REPLAYED):
                yield {
                    "messages": question(sample),
                    "max_tokens": suite.max_tokens,
                    "temperature": 0,
                }


def question(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a sample's messages up to the reference answer."""
    messages: list[dict[str, Any]] = sample["messages"]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def first_probe(registered: Registered) -> Probe:
    """A question of the parity check, and what the server that was evaluated answered to it.

    Of all probes the one whose answer depends least on rounding. Raises InputError for a record
    that cannot be read.
    """
    parity = read_parity(registered.folder / "evaluation")
    if parity is None:  # a version from before the check
        return Probe(messages=({"role": "user", "content": "hello"},))
    surest = parity.surest
    return Probe(messages=surest.messages, max_tokens=surest.max_tokens, answer=surest.answer)


__all__ = ["Served", "StepRecord", "begin", "end"]
