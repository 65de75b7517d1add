"""Stage `register`: the version's folder, its place in the archive, its name in the registry."""

import getpass
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard

from trainyard import files, inputs, lineage, registration
from trainyard.evaluation.intervals import wilson
from trainyard.evaluation.scores import Score, read_scores
from trainyard.gate import Decision
from trainyard.gate.bounds import bootstrap_mean, units
from trainyard.gate.evidence import cluster_index
from trainyard.lineage import BaseModelFacts, Cost, DataFacts, InputFile, Interval, Lineage, Timing
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.data import DataSpec
from trainyard.release import tracking
from trainyard.release.champion import Champion
from trainyard.release.data import DATA, FACTS, Checked
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.run import Summary
from trainyard.training.job import ADAPTER

CONFIDENCE = 0.95


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
    manifest_sha256: str | None = None
    """What the registry recorded of its manifest: any other one was made later."""
    skipped: bool

    @property
    def served_name(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    @property
    def words(self) -> str:
        return f"{self.served_name} {'was registered before' if self.skipped else 'in ' + self.url}"


def run(job: Job, summary: Summary, candidate: Candidate) -> Registered:
    """Raises Refused for a version that may not ship, Unavailable once it is safely parked."""
    with tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        read = inputs.find(job.recipe, job.base(), Path(scratch))
        origin = describe(job, summary, candidate, [found.file for found in read])
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
            read=read,
        )
    return Registered(
        name=origin.name,
        digest=origin.digest,
        folder=published.folder,
        url=published.record.url,
        manifest_sha256=published.record.manifest_sha256,
        skipped=published.already,
    )


def describe(
    job: Job, summary: Summary, candidate: Candidate, read: Sequence[InputFile]
) -> Lineage:
    recipe, base, verdict = job.recipe, job.base(), candidate.checked.verdict
    champion, evaluated = candidate.champion, candidate.evaluated
    spec = recipe.register

    def digests(role: str) -> dict[str, str]:
        return {file.name: file.sha256 for file in read if file.role == role}

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
        base_model=BaseModelFacts(
            ref=base.ref,
            revision=base.revision,
            digest=base.digest,
            license=spec.base_license or licence_of(base.path),
        ),
        data=DataFacts(
            digest=verdict.digest,
            sources=digests("data"),
            lines=verdict.lines,
            train=verdict.train,
            val=verdict.val,
            quarantine=verdict.quarantine,
            split=split_rule(recipe.data),
            license=spec.data_license,
        ),
        inputs=tuple(read),
        seeds={"train": recipe.train.seed, "evaluate": recipe.evaluate.seed},
        training=candidate.trained.result.model_dump(mode="json", exclude={"adapter"})
        | {"seed": recipe.train.seed},
        environment=lineage.environment(recipe.train.threads),
        stages=tuple(
            Timing(name=stage.name, seconds=stage.seconds, skipped=stage.skipped)
            for stage in summary.stages
            if stage.seconds is not None
        ),
        scores=flat_scores(evaluated),
        intervals=intervals(evaluated.folder / "scores.jsonl"),
        verdict=candidate.decision.verdict,
        gates=tuple(gate.model_dump(mode="json") for gate in candidate.decision.gates),
        eval_sets=digests("eval set"),
        evidence=files.digest_files(evaluated.folder),
        parity=_read(evaluated.folder / "parity.json"),
        cost=_cost(recipe, candidate, summary),
        approval=_read(job.folder / "approval.json"),
        parent=champion.digest if champion else None,
        tracker_runs=tracking.run_ids(job),
        flow_run=summary.flow_run_id,
        who=_whoever(),
    )


def split_rule(spec: DataSpec) -> str:
    """Say which rows are validated on, so that somebody else divides them the same way."""
    units = f"values of {spec.group_by}" if spec.group_by else "clusters of near-duplicates"
    return (
        f"{spec.val_fraction:g} of the {units}, by the hash of the smallest row id of each "
        "(data/divide.py)"
    )


def licence_of(base: Path) -> str | None:
    """Return what the base model's own card says."""
    try:
        found = ModelCard.load(base / "README.md").data.license
        return str(found) if found else None
    except (OSError, ValueError):
        return None


def intervals(scores: Path) -> dict[str, Interval]:
    """Two-sided 95 % interval of each mean: Wilson's for rates, by the bootstrap for the rest."""
    found: dict[str, Interval] = {}
    rows: dict[str, list[Score]] = defaultdict(list)
    for score in read_scores(scores):
        if score.arm == "candidate" and score.value is not None and math.isfinite(score.value):
            rows[f"{score.suite}/{score.metric}"].append(score)
    for name, group in sorted(rows.items()):
        if len(group) > 1:
            found[name] = _interval(sorted(group, key=lambda row: row.id))
    return found


def _interval(rows: Sequence[Score]) -> Interval:
    values = np.array([row.value for row in rows], dtype=float)
    weights = np.array([row.weight for row in rows], dtype=float)
    clusters = cluster_index(rows)
    if clusters is None and set(values) <= {0.0, 1.0} and np.all(weights == 1):
        low, high = wilson(float(values.sum()), len(values))
        method, mean = "wilson", float(values.mean())
    else:
        bound = bootstrap_mean([units(values, weights, clusters)], (1 - CONFIDENCE) / 2, [0])
        low, high, method, mean = bound.low, bound.high, bound.method, bound.estimate
    return Interval(mean=mean, low=low, high=high, n=len(rows), method=method)


def _cost(recipe: Recipe, candidate: Candidate, summary: Summary) -> Cost:
    resources, seconds = recipe.resources, candidate.trained.result.seconds
    price = resources.price_per_gpu_hour
    asked = next((s.seconds for s in summary.stages if s.name == "evaluate"), None)
    amount = None if price is None else resources.training_gpus * seconds / 3600 * price
    return Cost(
        gpus=resources.training_gpus,
        train_s=seconds,
        evaluate_s=asked,
        price_per_gpu_hour=price,
        amount=amount,
    )


def _whoever() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user database
        return "unknown"


def _read(path: Path) -> Any:
    return files.read_json(path) if path.exists() else None


def flat_scores(evaluated: Evaluated) -> dict[str, float]:
    """`suite/metric` -> the candidate's mean."""
    return {
        f"{suite}/{metric}": arms["candidate"]
        for suite, metrics in evaluated.scores.items()
        for metric, arms in metrics.items()
        if "candidate" in arms
    }
