"""One look at a champion: read what there is, check it, decide, and put it all on record."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from trainyard import files, process, rollout
from trainyard.environment import PRODUCTION, Environment
from trainyard.errors import NotFound, Refused, TrainyardError, Unavailable
from trainyard.monitor import quality, questions, record, traffic
from trainyard.monitor.decision import Situation, decide
from trainyard.monitor.finding import Finding, breach, healthy, unknown, worst
from trainyard.monitor.quality import Judged, Labelled
from trainyard.monitor.questions import DriftMemory
from trainyard.monitor.record import Look
from trainyard.monitor.traffic import Traffic
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.strategy import SloSpec
from trainyard.registry.mirror import open_registries
from trainyard.release.champion import Champion, find_champion
from trainyard.release.data import previous_of
from trainyard.rollout import Target, looks
from trainyard.rollout.gateway_client import verifies
from trainyard.rollout.state import ACTIVE, Deployment, Store
from trainyard.run import Summary

logger = logging.getLogger(__name__)

SERVED, VERSION = "served", "x-trainyard-version"


class Memory(Frozen):
    """What the next look needs of this one."""

    traffic: Traffic = Traffic()
    drift: DriftMemory = DriftMemory()
    judged: Judged = Judged()
    labelled: Labelled = Labelled()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only one that looks. Raises Refused while another look goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "look.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Refused(f"another look goes on in {folder}; this one is not needed") from None
    try:
        yield
    finally:
        lock.release()


def look(
    recipe: Recipe,
    home: Path,
    where: Environment = PRODUCTION,
    *,
    dry: bool = False,
    now: float | None = None,
) -> Look:
    """Check the champion and decide what follows; intentions are on disk before this returns.

    With `dry` nothing is kept: neither memory nor record. What cannot be measured is a finding,
    never an error.
    """
    now = time.time() if now is None else now
    folder = record.folder_of(where.home(home), recipe.name)
    with held(folder):
        path = folder / "memory.json"
        memory = Memory.model_validate(files.read_json(path)) if path.exists() else Memory()
        found, memory, situation = _checked(recipe, home, where, memory, now)
        actions = decide(found, situation, record.actions_of(folder), recipe.monitor, now)
        made = Look(
            at=now,
            model=recipe.name,
            version=situation.version,
            health=worst(found),
            findings=tuple(found),
            actions=tuple(actions),
        )
        if not dry:
            files.write_json(path, memory.model_dump(mode="json"))
            record.keep(folder, made)
    return made


def _checked(
    recipe: Recipe, home: Path, where: Environment, memory: Memory, now: float
) -> tuple[list[Finding], Memory, Situation]:
    place = where.home(home)
    spec = where.deploy_of(recipe.deploy)
    # as it was deployed: another spec would have the gateway started anew
    target = rollout.recorded_target(place, recipe.name)
    store = Store(target.folder)
    deployment = store.deployment()
    if deployment is None:
        nothing = unknown(SERVED, f"nothing of {recipe.name} is deployed in {place}")
        return [nothing], memory, Situation(model=recipe.name, version="")
    state = store.state()
    rolling = state is not None and state.phase in ACTIVE
    version = deployment.champion.version.digest
    if memory.traffic.version != version:
        memory = Memory(traffic=Traffic(version=version))
    found = [_served(recipe, home, where, target, deployment, rolling=rolling)]
    memory, heard = _heard(recipe, spec.slo or SloSpec(), target, memory, now)
    found += heard
    champion = _champion(recipe, home) if _needs_champion(recipe) else None
    rows = questions.logged(target.folder, version)
    memory, asked = _asked(recipe, home, target, champion, rows, memory)
    found += asked
    return found, memory, _situation(recipe, home, where, deployment, rolling=rolling)


def _situation(
    recipe: Recipe, home: Path, where: Environment, deployment: Deployment, *, rolling: bool
) -> Situation:
    cannot = ""
    if deployment.previous is None:
        cannot = "there is no former champion"
    elif rolling:
        cannot = "a rollout goes on, and guards itself"
    elif where.serves != "production":
        cannot = (
            f"{where.serves} is not rolled back by itself: `trainyard promote {recipe.name}@DIGEST "
            f"--to {where.serves}` gives another version its traffic"
        )
    return Situation(
        model=recipe.name,
        version=deployment.champion.version.digest,
        no_way_back=cannot,
        releasing=_releasing(home, recipe.name),
    )


def _releasing(home: Path, name: str) -> str | None:
    for path in sorted((home / "runs").glob(f"{name}-*/summary.json")):
        try:
            summary = Summary.model_validate(files.read_json(path))
        except (OSError, ValueError):
            continue  # being written
        going = summary.status == "running" and process.is_alive(summary.process)
        if summary.recipe == name and going:
            return summary.run_id
    return None


def _served(
    recipe: Recipe,
    home: Path,
    where: Environment,
    target: Target,
    deployment: Deployment,
    *,
    rolling: bool,
) -> Finding:
    """Is what answers users what is on record, here and in the registry?"""
    mine = deployment.champion.version
    try:
        answered = _ask(target, deployment)
    except (NotFound, Unavailable) as error:
        return unknown(SERVED, f"{mine.model} is on record, and {error}", "alert")
    registered = open_registries(recipe.register, home).aliases(recipe.name).get(where.serves)
    evidence = {"answered": answered, "recorded": mine.digest, "registered": registered}
    shown = ", ".join(f"{who} {(digest or 'nothing')[:12]}" for who, digest in evidence.items())
    if answered == mine.digest == registered:
        return healthy(SERVED, f"{mine.model} answers", **evidence)
    if rolling:
        return unknown(SERVED, f"a rollout goes on: {shown}", **evidence)
    return breach(SERVED, f"what is served is not the champion: {shown}", "alert", **evidence)


def _ask(target: Target, deployment: Deployment) -> str:
    """Digest that answers, by the header of a real answer. Raises Unavailable without one."""
    probe = deployment.champion.version.probe
    # never cut shorter than it is meant to be: a rollout may be comparing answers
    body = {
        "model": target.name,
        "messages": list(probe.messages),
        "max_tokens": probe.max_tokens,
        "temperature": 0,
    }
    headers = {**target.replay_headers(), "x-trainyard-variant": "champion"}
    url = f"{target.endpoint()}/v1/chat/completions"
    try:
        with httpx.Client(timeout=60, trust_env=False, verify=verifies(url)) as client:
            answer = client.post(url, json=body, headers=headers)
    except httpx.HTTPError as error:
        raise Unavailable(f"{url} did not answer: {error or type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK or VERSION not in answer.headers:
        raise Unavailable(f"{url} answered {answer.status_code}: {answer.text[:200]}")
    return answer.headers[VERSION]


def _heard(
    recipe: Recipe, objectives: SloSpec, target: Target, memory: Memory, now: float
) -> tuple[Memory, list[Finding]]:
    """Error budgets and feedback, from the records since the last look."""
    spec, old = recipe.monitor, memory.traffic
    try:
        target.endpoint()  # raises where no gateway runs: a look starts none
        lost = max(0, target.observe(old.cursor).lost) if old.boot else 0
        boot, cursor, records = looks.read(target, old.boot, old.cursor)
    except TrainyardError as error:
        return memory, [unknown("traffic", f"the gateway's records cannot be read: {error}")]
    seen = traffic.take(old, records, objectives, spec.feedback, now)
    seen = seen.model_copy(update={"boot": boot, "cursor": cursor})
    found = traffic.check_budget(seen, spec, objectives, lost, now)
    if spec.feedback is not None:
        found.append(traffic.check_feedback(seen, spec.feedback))
    return memory.model_copy(update={"traffic": seen}), found


def _needs_champion(recipe: Recipe) -> bool:
    drift = recipe.monitor.drift
    return recipe.monitor.labelled is not None or (drift is not None and drift.against == "data")


def _champion(recipe: Recipe, home: Path) -> Champion | None:
    """Return the champion's version on this machine; None when the archive does not give it."""
    try:
        return find_champion(recipe, home)
    except TrainyardError as error:
        logger.warning("the champion's version is not here: %s", error)
        return None


def _asked(
    recipe: Recipe,
    home: Path,
    target: Target,
    champion: Champion | None,
    rows: Sequence[dict[str, object]],
    memory: Memory,
) -> tuple[Memory, list[Finding]]:
    """Drift of what is asked, and the quality of what is answered."""
    spec, found = recipe.monitor, list[Finding]()
    changes: dict[str, object] = {}
    if spec.drift is not None:
        trained = None
        if spec.drift.against == "data" and champion is not None:
            data = previous_of(champion, home)
            trained = questions.trained_on(data.folder, spec.drift.reference) if data else None
        tested = questions.check_drift(spec.drift, list(rows), trained, memory.drift)
        changes["drift"] = tested
        assert tested.finding is not None
        found.append(tested.finding)
    if spec.judge is not None:
        try:
            judged, finding = quality.judge_sample(
                spec.judge, recipe, rows, memory.judged, home / "cache" / "judge"
            )
            changes["judged"] = judged
        except TrainyardError as error:
            finding = unknown("judge", str(error))
        found.append(finding)
    if spec.labelled is not None:
        finding = unknown("labelled", "the champion's version is not on this machine")
        if champion is not None:
            try:
                fresh = quality.fresh_rows(
                    spec.labelled, recipe, target, champion.folder, champion.digest, memory.labelled
                )
                changes["labelled"] = fresh
                assert fresh.finding is not None
                finding = fresh.finding
            except TrainyardError as error:
                finding = unknown("labelled", str(error))
        found.append(finding)
    return memory.model_copy(update=changes), found
