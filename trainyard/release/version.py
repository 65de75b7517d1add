"""Stage `register`: the version's folder, its place in the archive, its name in the registry."""

from datetime import UTC, datetime
from pathlib import Path

from trainyard import files, lineage, registration
from trainyard.gate import Decision
from trainyard.lineage import BaseModelFacts, DataFacts, Lineage, Timing
from trainyard.recipe.base import Frozen
from trainyard.recipe.data import SourceSpec
from trainyard.release.champion import Champion
from trainyard.release.data import DATA, FACTS, Checked, digest_sources
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.run import Summary
from trainyard.training.job import ADAPTER


class Candidate(Frozen):
    """Everything that a release made, for its version."""

    checked: Checked
    trained: Trained
    champion: Champion | None
    evaluated: Evaluated
    decision: Decision

    @property
    def digest(self) -> str:
        return self.trained.result.digest


class Registered(Frozen):
    name: str
    digest: str
    folder: Path
    """The version's folder on this machine; the archive holds the same."""
    url: str
    skipped: bool

    @property
    def served_name(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    @property
    def words(self) -> str:
        return f"{self.served_name} {'was registered before' if self.skipped else 'in ' + self.url}"


def run(job: Job, summary: Summary, candidate: Candidate) -> Registered:
    """Raises Refused for a version that may not ship, Unavailable once it is safely parked."""
    origin = describe(job, summary, candidate)
    files.write_json(job.folder / lineage.FILE, origin.model_dump(mode="json"))
    published = registration.publish(
        job.recipe.register,
        job.home,
        origin,
        candidate.trained.folder / ADAPTER,
        {
            "evaluation": candidate.evaluated.folder,
            "gate.json": job.folder / "gate.json",
            **{f"{DATA}/{name}": candidate.checked.folder / name for name in FACTS},
        },
        who="release",
    )
    return Registered(
        name=origin.name,
        digest=origin.digest,
        folder=published.folder,
        url=published.record.url,
        skipped=published.already,
    )


def describe(job: Job, summary: Summary, candidate: Candidate) -> Lineage:
    recipe, base, verdict = job.recipe, job.base(), candidate.checked.verdict
    champion = candidate.champion
    eval_sets = digest_sources(SourceSpec(path=suite.data) for suite in recipe.evaluate.suites)
    return Lineage(
        name=recipe.name,
        digest=candidate.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=job.run_id,
        git=lineage.git_state(),
        recipe=lineage.recipe_facts(
            job.recipe_path,
            Path(job.recipe_path).read_text(encoding="utf-8"),
            recipe.model_dump(mode="json"),
        ),
        base_model=BaseModelFacts(ref=base.ref, revision=base.revision, digest=base.digest),
        data=DataFacts(
            digest=verdict.digest,
            sources=digest_sources(recipe.data.sources),
            lines=verdict.lines,
            train=verdict.train,
            val=verdict.val,
            quarantine=verdict.quarantine,
        ),
        training=candidate.trained.result.model_dump(mode="json", exclude={"adapter"})
        | {"seed": recipe.train.seed},
        environment=lineage.environment(),
        stages=tuple(
            Timing(name=stage.name, seconds=stage.seconds, skipped=stage.skipped)
            for stage in summary.stages
        ),
        scores=flat_scores(candidate.evaluated),
        verdict=candidate.decision.verdict,
        gates=tuple(gate.model_dump(mode="json") for gate in candidate.decision.gates),
        eval_sets=eval_sets,
        parent=champion.digest if champion else None,
        flow_run=summary.flow_run_id,
    )


def flat_scores(evaluated: Evaluated) -> dict[str, float]:
    """`suite/metric` -> the candidate's mean."""
    return {
        f"{suite}/{metric}": arms["candidate"]
        for suite, metrics in evaluated.scores.items()
        for metric, arms in metrics.items()
        if "candidate" in arms
    }
