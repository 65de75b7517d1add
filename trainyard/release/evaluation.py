"""Stage `evaluate`: candidate, base and champion answer the same questions, from one engine."""

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainyard import files, stage
from trainyard.evaluation.run import Arm, OfflineArm, evaluate, probes
from trainyard.evaluation.scores import read_scores
from trainyard.parity.check import Reference
from trainyard.parity.probes import Answered, ask_server
from trainyard.parity.record import FILE
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.data import SourceSpec
from trainyard.recipe.evaluate import PYTHON_METRIC, HarnessSuite, SafetySuite
from trainyard.release import engine
from trainyard.release.champion import Champion
from trainyard.release.data import digest_sources
from trainyard.release.job import Job, Progress, code_digest
from trainyard.release.training import Trained
from trainyard.stage import Stage
from trainyard.training.job import ADAPTER

OUT = "out"

logger = logging.getLogger(__name__)


class Evaluated(Frozen):
    folder: Path
    scores: dict[str, dict[str, dict[str, float]]]
    """suite -> metric -> arm -> mean."""
    skipped: bool

    @property
    def words(self) -> str:
        shown = [
            f"{metric} {arms['candidate']:.3g} (base {arms['base']:.3g})"
            for metrics in self.scores.values()
            for metric, arms in metrics.items()
            if "candidate" in arms and "base" in arms
        ]
        return ("same models and questions: " if self.skipped else "") + ", ".join(shown[:3])


def inputs(job: Job, candidate: str, champion: Champion | None) -> dict[str, Any]:
    recipe = job.recipe
    return {
        "spec": job.evaluate.model_dump(mode="json"),
        "files": _other_files(recipe),
        "eval_sets": digest_sources(SourceSpec(path=path) for path in recipe.evaluate.eval_sets),
        "base": job.base().digest,
        "candidate": candidate,
        "champion": champion.digest if champion else None,
        "engine": recipe.deploy.engine,
        "code": code_digest("evaluation", "serving", "parity", "data"),
    }


def _other_files(recipe: Recipe) -> dict[str, str]:
    """Files that suites name beside their data: schemas, labels, calibrations, own metrics."""
    named = [
        getattr(suite, key, None)
        for suite in recipe.evaluate.suites
        for key in ("json_schema", "labels", "calibration")
    ]
    metrics = [
        PYTHON_METRIC.fullmatch(metric)
        for suite in recipe.evaluate.suites
        for metric in getattr(suite, "metrics", ())
    ]
    named += [found["file"] for found in metrics if found]
    guards = [suite.guard for suite in recipe.evaluate.suites if isinstance(suite, SafetySuite)]
    named += [guard.labels for guard in guards]
    harnesses = [s for s in recipe.evaluate.suites if isinstance(s, HarnessSuite)]
    named += [task for suite in harnesses for task in suite.tasks]
    folders = [recipe.evaluate.parity.merged, *(guard.folder for guard in guards)]
    folders += [suite.folder for suite in harnesses]
    named += [str(path) for folder in folders if folder for path in Path(folder).rglob("*")]
    return {name: files.digest_file(Path(name)) for name in named if name and Path(name).is_file()}


def find(job: Job, trained: Trained, champion: Champion | None) -> Evaluated | None:
    """Return the scores of an earlier run with the same models and questions."""
    held = stage.find(job.home, "evaluate", inputs(job, trained.result.digest, champion))
    found = held.finished()
    return _evaluated(held, found, skipped=True) if found else None


def run(job: Job, trained: Trained, champion: Champion | None, progress: Progress) -> Evaluated:
    """Raises InputError for an eval set or model that cannot be used, Unavailable if it is down."""
    key = inputs(job, trained.result.digest, champion)
    with stage.opened(job.home, "evaluate", key) as held:
        found = held.finished()
        if found:
            evaluated = _evaluated(held, found, skipped=True)
        else:
            _take_over(job, trained, champion, held)
            _measure(job, trained, champion, held, progress)
            result = {"scores": means(held.folder / OUT / "scores.jsonl")}
            evaluated = _evaluated(held, held.finish(result, [OUT]), skipped=False)
        held.publish(OUT, job.folder / "evaluation")
    return evaluated


def _take_over(job: Job, trained: Trained, champion: Champion | None, held: Stage) -> None:
    """Start from the answers of the look before this one, so that only new items are asked."""
    before = find(job.before, trained, champion) if job.before else None
    for name in ("answers.jsonl", "guard.jsonl"):
        if before and (before.folder / name).exists() and not (held.folder / OUT / name).exists():
            files.write_bytes(held.folder / OUT / name, (before.folder / name).read_bytes())


def _measure(
    job: Job, trained: Trained, champion: Champion | None, held: Stage, progress: Progress
) -> None:
    """Write scores and parity record. One of engine, offline model and trainer's model runs."""
    spec, logs = job.evaluate, held.folder
    offline = spec.generation == "offline"

    def score(arms: Mapping[str, Arm | OfflineArm]) -> None:
        evaluate(
            spec,
            arms,
            held.folder / OUT,
            progress=lambda what, done, of: progress(done / max(of, 1), what),
            trusted=True,  # whoever may start a release may run the recipe's functions
            judge_cache=job.home / "judge",
        )

    with Reference(trained.folder, spec.parity, logs / "parity.log") as reference:
        if offline:
            score(_offline(job, trained, champion))
        with ExitStack() as engines:
            arms = _start(job, trained, None if offline else champion, logs, engines)
            if not offline:
                score(arms)
            probed = _probe(job.recipe, arms["candidate"])
        parity = reference.check(probed, trained.result.digest)
    files.write_json(held.folder / OUT / FILE, parity.model_dump(mode="json"))


def _offline(job: Job, trained: Trained, champion: Champion | None) -> dict[str, OfflineArm]:
    recipe, base = job.recipe, job.base()

    def arm(folder: Path, digest: str, adapter: Path | None) -> OfflineArm:
        trusted, threads = recipe.trust_remote_code, recipe.deploy.threads
        return OfflineArm(folder, digest, adapter, threads, trusted)

    arms = {
        "candidate": arm(base.path, trained.result.digest, trained.folder / ADAPTER),
        "base": arm(base.path, base.digest, None),
    }
    former = champion.base(job.home) if champion else None
    if champion and former:
        arms["champion"] = arm(former, champion.digest, champion.adapter)
    return arms


def _probe(recipe: Recipe, candidate: Arm) -> list[Answered]:
    spec = recipe.evaluate
    return ask_server(
        candidate.base_url,
        candidate.model,
        probes(spec),
        max_tokens=spec.parity.max_tokens,
        timeout_s=spec.timeout_s,
    )


def _evaluated(held: Stage, result: dict[str, Any], *, skipped: bool) -> Evaluated:
    return Evaluated(folder=held.folder / OUT, scores=result["scores"], skipped=skipped)


def _start(
    job: Job, trained: Trained, champion: Champion | None, logs: Path, engines: ExitStack
) -> dict[str, Arm]:
    """Start one engine per base model; candidate, base and champion share it when they can."""
    recipe, base = job.recipe, job.base()
    named = engine.base_name(recipe)
    candidate = f"{recipe.name}@{trained.result.digest[:12]}"
    adapters = {candidate: trained.folder / ADAPTER}
    shares_base = champion is not None and champion.base_digest == base.digest
    if champion and shares_base:
        adapters[champion.served_name] = champion.adapter

    def start(folder: Path, adapters: dict[str, Path], log: str) -> str:
        return engines.enter_context(
            engine.serving(recipe, base=folder, base_name=named, adapters=adapters, log=logs / log)
        )

    def arm(url: str, adapter: str, digest: str) -> Arm:
        return Arm(url, engine.request_model(recipe, adapter), digest)

    url = start(base.path, adapters, "engine.log")
    arms = {
        "candidate": arm(url, candidate, trained.result.digest),
        "base": Arm(url, named, base.digest),
    }
    if champion and not shares_base:
        former = champion.base(job.home)
        if former is None:
            logger.warning(
                "%s is not compared: its base %s has other weights by now",
                champion.served_name,
                champion.base_ref,
            )
            return arms
        url = start(former, {champion.served_name: champion.adapter}, "engine-champion.log")
    if champion:
        arms["champion"] = arm(url, champion.served_name, champion.digest)
    return arms


def means(scores: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Mean of every metric per suite and arm, for display: gates read the scores themselves."""
    sums: dict[tuple[str, str, str], tuple[float, float]] = {}
    for score in read_scores(scores):
        if score.value is not None and math.isfinite(score.value):  # its gate is INVALID
            key = (score.suite, score.metric, score.arm)
            total, weight = sums.get(key, (0.0, 0.0))
            sums[key] = (total + score.value * score.weight, weight + score.weight)
    shown: dict[str, dict[str, dict[str, float]]] = {}
    for (suite, metric, arm), (total, weight) in sums.items():
        if weight > 0:
            shown.setdefault(suite, {}).setdefault(metric, {})[arm] = total / weight
    return shown
