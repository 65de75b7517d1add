"""Look at a champion, and do what the look decided: each action once, and on record."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from tasks import notify as telling
from tasks.dispatch import flow_run_id
from tasks.notify import links_of
from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from trainyard import notify, versions
from trainyard.environment import Environment
from trainyard.errors import NotFound, TrainyardError
from trainyard.monitor import record, watch
from trainyard.monitor.decision import Action
from trainyard.monitor.record import Look
from trainyard.recipe import Recipe

WHO = "monitor"


@keeps_secrets
@task(
    name="look",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=1800,
    cache_policy=NO_CACHE,
)
def look(recipe: Recipe, home: Path, where: Environment) -> Look:
    return watch.look(recipe, home, where)


@keeps_secrets
@task(name="alert", cache_policy=NO_CACHE, timeout_seconds=120)
def alert(recipe: Recipe, seen: Look, action: Action) -> str:
    """Tell people; what could not be sent is in the outcome."""
    lines = tuple(
        f"{finding.check} {finding.health}: {finding.reason}"
        for finding in seen.findings
        if finding.check in action.checks
    )
    version = f"{recipe.name}@{seen.version[:12]}"
    message = notify.of_alarm(recipe.name, version, lines, links_of(flow_run_id()))
    get_run_logger().warning("%s: %s", message.title, "; ".join(lines))
    problems = notify.send(recipe.notify, message)
    told = f"{len(recipe.notify.to)} places" if recipe.notify.to else "the log only"
    return f"told {told}" + (f"; {'; '.join(problems)}" if problems else "")


@keeps_secrets
@task(name="roll back", cache_policy=NO_CACHE)
def roll_back(recipe: Recipe, home: Path, action: Action) -> str:
    done = versions.rollback(recipe.name, home, why=action.why, who=WHO)
    telling.tell_rollback(recipe.name, home, done, action.why)
    return f"{done.back_to} serves again instead of {done.away_from}, after {done.seconds:.2f} s"


@keeps_secrets
@task(
    name="ask for a release",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
)
def ask_for_release(recipe: Recipe, parameters: dict[str, Any], action: Action) -> str:
    """Start the deployment and do not wait; asked again for the same intention, it is one run."""
    name = recipe.monitor.release.deployment or f"release/{recipe.name}"
    try:
        started = run_deployment(
            name,
            parameters=parameters,
            idempotency_key=f"{WHO}:{action.id}",
            timeout=0,
            as_subflow=False,  # it outlives this look
            tags=[WHO],
        )
    except ObjectNotFound:
        raise NotFound(f"no deployment {name}: name one in monitor.release.deployment") from None
    assert isinstance(started, FlowRun)
    return f"{name} is run {started.id}"


def act(recipe: Recipe, home: Path, where: Environment, path: str, seen: Look) -> Look:
    """Do what is intended, one after the other; one that fails keeps no other from being done."""
    folder = record.folder_of(where.home(home), recipe.name)
    ended = []
    for action in seen.actions:
        if action.status != "intended":
            ended.append(action)
            continue
        try:
            match action.kind:
                case "alert":
                    outcome = alert(recipe, seen, action)
                case "rollback":
                    outcome = roll_back(recipe, home, action)
                case "release":
                    outcome = ask_for_release(recipe, {"recipe": path}, action)
            ended.append(record.note(folder, action, done=True, outcome=outcome))
        except TrainyardError as error:
            ended.append(record.note(folder, action, done=False, outcome=str(error)))
    done = seen.model_copy(update={"actions": tuple(ended)})
    _show(done)
    return done


def _show(seen: Look) -> None:
    rows = [
        {"check": f.check, "health": f.health, "then": f.then or "", "reason": f.reason}
        for f in seen.findings
    ]
    create_table_artifact(
        key=f"monitor-{seen.model}", table=rows, description=f"{seen.health} at {seen.at:.0f}"
    )
    evidence = seen.model_dump_json(indent=2)
    create_markdown_artifact(
        key=f"monitor-{seen.model}-evidence", markdown=f"```json\n{evidence}\n```"
    )
