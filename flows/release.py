"""From a recipe to a version with traffic."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow

from flows import console
from flows.evaluation import evaluation
from flows.training import training
from tasks import approval, data, dispatch, gate, notify, plan, registry, report, rollout, traces
from tasks.policy import keeps_secrets, quiet_own_errors
from trainyard import secrets
from trainyard.environment import HERE, Environment, read_environment
from trainyard.errors import Refused
from trainyard.gate import Decision, Verdict
from trainyard.recipe import read_recipe
from trainyard.release.champion import Champion
from trainyard.release.data import Checked
from trainyard.release.evaluation import Evaluated
from trainyard.release.evaluation import find as find_evaluated
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.release.training import find as find_trained
from trainyard.release.version import Candidate
from trainyard.run import Run, StageSummary, Summary

HOME = Path(".trainyard")


class Proven(NamedTuple):
    """What a candidate was compared with, its scores, and the decision that lets it ship."""

    champion: Champion | None
    evaluated: Evaluated
    decision: Decision


quiet_own_errors()
traces.start()


@keeps_secrets
@flow(
    name="release",
    flow_run_name="{recipe}",
    validate_parameters=True,
    on_cancellation=[dispatch.cancel_children],
    on_crashed=[dispatch.cancel_children],
)
def release(
    recipe: str,
    overrides: dict[str, Any] | None = None,
    environment: str = "laptop",
    dry_run: bool = False,
) -> Summary:
    """Fine-tune what a recipe says, and give the result traffic only as far as it proves itself.

    Args:
        recipe: Path of the recipe's YAML file, from the repository's root.
        overrides: Dotted keys of the recipe and their values for this run, as {"train.rank": 8}.
        environment: Where training and evaluation run, and where the version serves: a file of
            deployments/environments.
        dry_run: Plan only: say what would run, be skipped and cost.
    """
    where = read_environment(environment)
    wanted = read_recipe(Path(recipe), overrides)
    secrets.know(wanted.model_dump())
    with Run.opened(HOME, wanted.name, recipe, dispatch.flow_run_id()) as run:
        job = Job(recipe=wanted, recipe_path=recipe, run_id=run.summary.run_id, home=HOME)
        try:
            release_stages(run, job, where, dry_run)
        finally:
            if not dry_run:
                report.book(job, run)
            report.write(job, run)
            if not dry_run:
                registry.track(job, run.summary)
                notify.tell_release(job, run)
    return run.summary


def release_stages(run: Run, job: Job, where: Environment, dry_run: bool) -> None:
    """The stages in their order. The first one that says no ends the release."""
    with run.stage("plan") as stage:
        planned = plan.make(job, where)
        stage.came_to(planned)
        if not dry_run:
            report.reserve(job, planned)
    if dry_run:
        return
    with run.stage("data") as stage:
        checked = data.check(job, where.data)
        stage.came_to(checked)
    with run.stage("train") as stage:
        trained = train(job, checked, where)
        stage.came_to(trained)
    proven = prove(run, job, trained, where)
    approve(run, job, trained.result.digest, where)
    with run.stage("register") as stage:
        candidate = Candidate(
            checked=checked,
            trained=trained,
            champion=proven.champion,
            evaluated=proven.evaluated,
            decision=proven.decision,
        )
        registered = registry.register(job, run.summary, candidate)
        run.summary.version = registered.served_name
        stage.came_to(registered)
    with run.stage("rollout") as stage:
        pausing = partial(waiting, run, job, stage)
        served = rollout.roll_out(job, registered, where, pausing)
        run.summary.endpoint = served.endpoint
        stage.came_to(served)


def prove(run: Run, job: Job, trained: Trained, where: Environment) -> Proven:
    """Evaluate and decide, on more items as long as only more of them can decide."""
    digest = trained.result.digest
    while True:
        with run.stage("evaluate") as stage:
            report.check_budget(job, run)
            champion = registry.find_rival(job, digest)
            evaluated = evaluate(job, trained, champion, where)
            stage.came_to(evaluated)
            run.summary.scores = evaluated.scores
        with run.stage("gate") as stage:
            decision = gate.decide(job, evaluated, digest, champion)
            while decision.verdict is Verdict.PENDING_HUMAN:
                run.summary.verdict, stage.reason = decision.verdict, decision.reason
                report.write(job, run)
                gate.wait_for_people(job, evaluated, champion, decision)
                decision = gate.decide(job, evaluated, digest, champion)
            run.summary.verdict, stage.reason = decision.verdict, decision.reason
            larger = gate.next_look(job, decision)
            if larger is None:
                gate.must_pass(decision)
                return Proven(champion, evaluated, decision)
        job = larger


def approve(run: Run, job: Job, digest: str, where: Environment) -> None:
    """Where the recipe asks for it, no version is registered without a named person's yes."""
    asked = approval.question(job, digest, where)
    if asked is None:
        return
    with run.stage("approve") as stage:
        with waiting(run, job, stage, asked.words):
            given = approval.wait(job, asked)
        stage.reason = f"approved by {given.who}: {given.why}"


@contextmanager
def waiting(run: Run, job: Job, stage: StageSummary, question: str) -> Iterator[None]:
    """Whatever ends the run inside is no failure, but for a no: a person has to answer first."""
    passed = run.summary.verdict
    run.summary.verdict, stage.reason = Verdict.PENDING_HUMAN, question
    report.write(job, run)
    try:
        yield
    except Refused:
        run.summary.verdict = passed
        raise
    run.summary.verdict = passed


def train(job: Job, checked: Checked, where: Environment) -> Trained:
    if where.training == HERE:
        return training(job, checked)
    return dispatch.once(
        where.training,
        "train",
        job,
        parameters={"checked": checked},
        find=lambda: find_trained(job, checked),
        nodes=job.recipe.resources.nodes,
    )


def evaluate(
    job: Job, trained: Trained, champion: Champion | None, where: Environment
) -> Evaluated:
    if where.evaluation == HERE:
        return evaluation(job, trained, champion)
    return dispatch.once(
        where.evaluation,
        f"evaluate {len(job.looks) + 1}",
        job,
        parameters={"trained": trained, "champion": champion},
        find=lambda: find_evaluated(job, trained, champion),
    )


if __name__ == "__main__":
    console.main(release)
