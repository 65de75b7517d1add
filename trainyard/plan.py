"""What a release would do, skip, need and cost: before any of it, offline, without torch."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, ValidationError

from trainyard import changes, cost, lineage, needs, registration
from trainyard.environment import Environment
from trainyard.errors import InputError, TrainyardError, Unavailable
from trainyard.evaluation.run import planned
from trainyard.gate import Planned, Rules
from trainyard.gate.foresight import foresee
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.register import FolderArchive, MlflowRegistry
from trainyard.release import data, engine, evaluation, training
from trainyard.release.champion import Champion, find_champion, rival_of
from trainyard.release.data import Checked
from trainyard.release.job import Job
from trainyard.rollout import foresight


class PlanStage(Frozen):
    name: str
    action: Literal["run", "skip"]
    reason: str


RUN_ALWAYS = "runs every time"
AFTER_DATA = "its data is not checked yet"
AFTER_TRAINING = "its adapter is not trained yet"
NEW = "new inputs"
SAME = "same inputs as before"


class PlanGate(Frozen):
    id: str
    n: int
    min_detectable: float | None
    """True value (or true drop) that passes with probability 0.8."""
    can_pass: bool
    most: int | None = None
    """Items at most, where it may draw on more than `n` while it is INCONCLUSIVE."""


class Plan(Frozen):
    recipe: str
    stages: list[PlanStage]
    vram: needs.Memory | None
    disk: dict[str, float]
    """`needed_gib` of checkpoints and adapter, `export_gib` of a merged export, `free_gib`."""
    time_s: float | None
    gpu_hours: float | None
    cost: float | None
    """Training, evaluation as long as lately, and judges at most; None where it is not known."""
    over_budget: str | None = None
    """Which limit it would break: a release does not start."""
    gates: list[PlanGate]
    problems: list[str]
    """What can never work: a release with these does not start."""
    notes: list[str]
    changes: list[str] = Field(default_factory=list)
    """Keys that differ from the recipe it is compared with, in words."""

    @property
    def skipped(self) -> bool:
        return False

    @property
    def spends(self) -> bool:
        """Whether anything that has a price runs."""
        return _spends(self.stages)

    @property
    def words(self) -> str:
        runs = [stage.name for stage in self.stages if stage.action == "run"]
        skips = [stage.name for stage in self.stages if stage.action == "skip"]
        parts = [f"to run: {', '.join(runs)}"] if runs else []
        parts += [f"to skip: {', '.join(skips)}"] if skips else []
        if self.vram:
            parts.append(f"{self.vram.needed_gib:.1f} GiB of memory")
        return "; ".join(parts)


def make(
    job: Job,
    where: Environment | None = None,
    *,
    against: Recipe | None = None,
    offline: bool = False,
) -> Plan:
    """Say what would be done; what is impossible, also in the place `where`, is in `problems`.

    `against` is a recipe to compare with. `offline` looks at nothing but files: at no registry,
    archive or hub that is elsewhere, and at no working tree. Raises InputError when nothing can be
    planned.
    """
    notes: list[str] = []
    champion = _champion(job, notes, offline)
    held = planned(job.recipe.evaluate)
    gates, problems = _gates(job.recipe, held, champion)
    checked = _checked(job, champion)
    needed = needs.of(job.recipe, job.home, checked)
    engine.check(job.recipe)
    tree = None if offline else registration.why_dirty(job.recipe.register, lineage.git_state())
    few = _too_few_nodes(job.recipe, where, notes)
    unfit = _unfit_there(job.recipe, where) if where else None
    training_s = needed.budget.hours * 3600 if needed.budget else None
    stages = _stages(job, checked, champion)
    sizes = {name: suite.n for name, suite in held.items()}
    amount = cost.estimate(job.recipe, job.home, training_s, sizes, cost.read_prices())
    now = datetime.now(UTC)
    off = cost.error_words(cost.entries(job.home, job.recipe.name))
    return Plan(
        recipe=job.recipe.name,
        stages=stages,
        vram=needed.memory,
        disk=needed.disk,
        time_s=None if training_s is None else round(training_s, 1),
        gpu_hours=round(needed.budget.gpu_hours, 3) if needed.budget else None,
        cost=amount or None,
        over_budget=cost.over(job.recipe, job.home, amount, now) if _spends(stages) else None,
        gates=gates,
        problems=[*problems, *needed.problems, *(why for why in (tree, few, unfit) if why)],
        notes=[*notes, *needed.notes, *_rollout_notes(job.recipe), *([off] if off else [])],
        changes=[c.words for c in changes.between(against, job.recipe)] if against else [],
    )


def _spends(stages: Sequence[PlanStage]) -> bool:
    return any(s.action == "run" and s.name in ("train", "evaluate") for s in stages)


def _too_few_nodes(recipe: Recipe, where: Environment | None, notes: list[str]) -> str | None:
    need = recipe.resources
    if where is None and need.nodes > 1:
        notes.append(f"{need.nodes} machines train together only as a Job of a Kubernetes pool")
    return where.why_too_few_nodes(need) if where else None


def _unfit_there(recipe: Recipe, where: Environment) -> str | None:
    """Say why the recipe cannot serve as the environment would have it, or None."""
    try:
        there = where.deploy_of(recipe.deploy)
        Recipe.model_validate(recipe.model_dump() | {"deploy": there.model_dump()})
    except InputError as error:
        return str(error)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        return f"deploy of {where.serves}: {said}"
    return None


def _rollout_notes(recipe: Recipe) -> list[str]:
    """Say how long each step of a canary takes at the expected traffic."""
    notes = []
    for step in foresight.foresee(recipe.deploy):
        alone = "" if step.enough else ", more than users alone bring in time"
        notes.append(
            f"canary at {step.step}: {step.least_s:.0f} to {step.planned_s:.0f} s{alone}; "
            f"20 % errors end it after about {step.errors_20_pct_s:.0f} s"
        )
    return notes


def _champion(job: Job, notes: list[str], offline: bool) -> Champion | None:
    if offline and not _is_local(job.recipe):
        notes.append("planned as a first release: its registry or archive is elsewhere")
        return None
    try:
        return find_champion(job.recipe, job.home)
    except TrainyardError as error:
        notes.append(f"planned as a first release: the champion is not known ({error})")
        return None


def _checked(job: Job, champion: Champion | None) -> Checked | None:
    """What an earlier run found in the same data; None also where the base is not here yet."""
    try:
        job.base(download=False)
        return data.find(job, data.previous_of(champion, job.home) if champion else None)
    except Unavailable:
        return None


def _is_local(recipe: Recipe) -> bool:
    registry, archive = recipe.register.registry, recipe.register.archive
    local = isinstance(registry, MlflowRegistry) and registry.uri is None
    return local and isinstance(archive, FolderArchive) and archive.url is None


def _gates(
    recipe: Recipe, held: Mapping[str, Planned], champion: Champion | None
) -> tuple[list[PlanGate], list[str]]:
    arms = {"candidate", "base", *({"champion"} if champion else ())}
    found = foresee(
        recipe.gates,
        held,
        arms,
        Rules.of(recipe.evaluate, has_champion=champion is not None),
    )
    gates = [
        PlanGate(id=g.id, n=g.n, min_detectable=g.min_detectable, can_pass=g.can_pass, most=g.most)
        for g in found
    ]
    blocking = {gate.id for gate in recipe.gates if gate.severity == "block"}
    problems = [f"gate {g.id}: {g.problem}" for g in found if g.problem and g.id in blocking]
    return gates, problems


def _stages(job: Job, checked: Checked | None, champion: Champion | None) -> list[PlanStage]:
    """Follow the chain of digests as far as earlier runs have laid it."""
    stages = [PlanStage(name="plan", action="run", reason=RUN_ALWAYS)]
    stages.append(_stage("data", checked is not None))
    trained = training.find(job, checked) if checked else None
    stages.append(_stage("train", trained is not None, NEW if checked else AFTER_DATA))
    rival = rival_of(champion, trained.result.digest) if trained else champion
    evaluated = evaluation.find(job, trained, rival) if trained else None
    stages.append(_stage("evaluate", evaluated is not None, NEW if trained else AFTER_TRAINING))
    stages.append(PlanStage(name="gate", action="run", reason=RUN_ALWAYS))
    if job.recipe.deploy.approval is not None:
        spec = job.recipe.deploy.approval
        why = f"{' or '.join(spec.by)} says yes within {spec.expires_h:g} h"
        stages.append(PlanStage(name="approve", action="run", reason=why))
    same = bool(trained and champion and champion.digest == trained.result.digest)
    for name in ("register", "rollout"):
        stages.append(_stage(name, same, NEW, "this version is champion already"))
    return stages


def _stage(name: str, skip: bool, new: str = NEW, same: str = SAME) -> PlanStage:
    return PlanStage(name=name, action="skip" if skip else "run", reason=same if skip else new)


def as_text(plan: Plan) -> str:
    """Return the plan as a person reads it in a terminal."""
    lines = [plan.recipe]
    lines += [f"  {stage.name:<10}{stage.action:<6}{stage.reason}" for stage in plan.stages]
    for gate in plan.gates:
        power = gate.min_detectable
        sees = "" if power is None else f", and 8 times of 10 at a true {power:.4g}"
        can = "can pass" if gate.can_pass else "can never pass"
        items = f"{gate.n} items" + (f", up to {gate.most}" if gate.most else "")
        lines.append(f"  gate {gate.id}: {can} with {items}{sees}")
    if plan.vram:
        of = f" of {plan.vram.available_gib:.1f}" if plan.vram.available_gib else ""
        lines.append(f"  memory {plan.vram.needed_gib:.1f}{of} GiB")
    if "needed_gib" in plan.disk:
        needed, free = plan.disk["needed_gib"], plan.disk["free_gib"]
        export = plan.disk["export_gib"]
        lines.append(f"  disk {needed:.2f} of {free:.1f} GiB, and {export:.2f} for an export")
    if plan.time_s is not None:
        lines.append(f"  time about {plan.time_s / 60:.0f} min of training")
    if plan.cost is not None:
        lines.append(f"  cost about {plan.cost:.2f} for {plan.gpu_hours or 0:.2f} GPU-hours")
    lines += [f"  changed {change}" for change in plan.changes]
    lines += [f"  note: {note}" for note in plan.notes]
    lines += [f"  PROBLEM: {problem}" for problem in plan.problems]
    lines += [f"  PROBLEM: {plan.over_budget}"] if plan.over_budget else []
    return "\n".join(lines)
