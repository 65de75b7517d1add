"""Stage `train`: from checked rows to an adapter, in a folder that a killed one resumes in."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainyard import cost, files, secrets, stage, storage
from trainyard.errors import InputError, Refused, TrainingFailed
from trainyard.recipe.base import Frozen
from trainyard.registry import open_registry
from trainyard.release.champion import fetch
from trainyard.release.data import Checked
from trainyard.release.job import Job, Progress, code_digest
from trainyard.stage import Stage
from trainyard.training import estimates
from trainyard.training.job import (
    ADAPTER,
    JOB,
    LOG,
    METRICS,
    RESULT,
    TrainJob,
    TrainResult,
    adapter_weights,
    environment,
    reward_files,
)
from trainyard.training.launcher import launch
from trainyard.training.mirror import Mirror
from trainyard.training.watchdog import Limits


class Trained(Frozen):
    result: TrainResult
    folder: Path
    skipped: bool

    @property
    def words(self) -> str:
        if self.skipped:
            return f"same data, recipe, code and environment: adapter {self.result.digest[:12]}"
        return (
            f"{self.result.backend}, {self.result.steps} steps, loss {self.result.loss:.3f}: "
            f"adapter {self.result.digest[:12]}"
        )


def inputs(job: Job, data_digest: str, start: Path | None = None) -> dict[str, Any]:
    """What a training is computed from; `start` is `start_of(job)` where that is known already."""
    spec = job.recipe.train
    start = start or start_of(job)
    return {
        "continue_from": start and files.digest_file(adapter_weights(str(start))),
        "spec": spec.model_dump(mode="json"),
        "rewards": [files.digest_file(file) for file in reward_files(spec)],
        "gpus": job.recipe.resources.gpus,
        "nodes": job.recipe.resources.nodes,
        "base": job.base().digest,
        "data": data_digest,
        "environment": environment(),
        "code": code_digest("training", "data/template.py"),
    }


def start_of(job: Job) -> Path | None:
    """Return the folder that `continue_from` names: an adapter's, or a version's by NAME@REF.

    Raises InputError for a version of another base model, NotFound for one that is not registered.
    """
    named = job.recipe.train.continue_from
    if named is None or "@" not in named or Path(named).is_dir():
        return None if named is None else Path(named)
    name, _, ref = named.partition("@")
    record = open_registry(job.recipe.register.registry, job.home).resolve(name, ref)
    folder = fetch(job.recipe, record, job.home)
    base = files.read_json(folder / "lineage.json")["base_model"]
    if base["digest"] != job.base().digest:
        raise InputError(
            f"continue_from {named} was trained on {base['ref']} ({base['digest'][:12]}), and "
            f"base_model {job.recipe.base_model} is {job.base().digest[:12]}: name the same base"
        )
    return folder


def train_job(job: Job, checked: Checked, start: Path | None) -> TrainJob:
    base = job.base()
    return TrainJob(
        name=job.recipe.name,
        base_model=base.path.absolute(),
        base_ref=job.recipe.base_model,
        base_digest=base.digest,
        train=(checked.folder / "train.jsonl").absolute(),
        val=(checked.folder / "val.jsonl").absolute() if checked.verdict.val else None,
        data_digest=checked.verdict.digest,
        spec=job.recipe.train.model_copy(update={"continue_from": start and str(start.absolute())}),
        gpus=job.recipe.resources.gpus,
        nodes=job.recipe.resources.nodes,
        trust_remote_code=job.recipe.trust_remote_code,
    )


def find(job: Job, checked: Checked) -> Trained | None:
    """Return what an earlier run trained from the same inputs."""
    held = stage.find(job.home, "train", inputs(job, checked.verdict.digest))
    found = held.finished()
    return _trained(held, found, skipped=True) if found else None


def run(job: Job, checked: Checked, progress: Progress) -> Trained:
    """Raises TrainingFailed with the end of the program's log, Refused at the budget's end."""
    start = start_of(job)
    with stage.opened(job.home, "train", inputs(job, checked.verdict.digest, start)) as held:
        found = held.finished()
        if found:
            trained = _trained(held, found, skipped=True)
        else:
            result = _launch(job, train_job(job, checked, start), held, progress)
            _keep_estimate(job, result)
            values = result.model_dump(mode="json")
            held.finish(values, [ADAPTER, METRICS, RESULT, JOB])
            trained = _trained(held, values, skipped=False)
        for output in (ADAPTER, METRICS, RESULT):
            held.publish(output, job.folder / "train" / output)
    return trained


def _launch(job: Job, work: TrainJob, held: Stage, progress: Progress) -> TrainResult:
    """Train for as long as `max_hours` and the budget allow."""
    most_s = job.recipe.resources.max_hours * 3600
    paid_s = cost.affordable_s(job, datetime.now(UTC))
    limit_s = most_s if paid_s is None else min(most_s, paid_s)
    price_per_s = cost.gpu_price_per_s(job.recipe)
    begin = time.monotonic()
    try:
        return launch(
            work,
            held.folder,
            progress=lambda step: progress(*step_words(step, price_per_s)),
            limits=Limits(total_s=limit_s),
            mirror=_mirror(job, held),
        )
    except TrainingFailed as error:
        if paid_s is not None and limit_s == paid_s and time.monotonic() - begin >= paid_s:
            raise Refused(
                f"budget: it paid for {paid_s / 3600:.3g} hours of training, and these are over; "
                "its last checkpoint stays: raise the budget and run the same command again"
            ) from error
        raise
    finally:
        secrets.mask_file(held.folder / LOG)


def _mirror(job: Job, held: Stage) -> Mirror | None:
    """Under a name that every machine with the same inputs computes."""
    if not job.recipe.train.mirror_checkpoints:
        return None
    store = storage.open_store(job.recipe.register.archive, job.home)
    return Mirror(store, f"{job.recipe.name}-{held.folder.name}")


def _keep_estimate(job: Job, result: TrainResult) -> None:
    estimated = result.details.get("estimated_gib")
    measured = result.details.get("self_checks", {}).get("longest_step_gib")
    if estimated and measured:
        kind = estimates.kind_of(job.recipe.train, job.recipe.resources, result.backend)
        estimates.keep(job.home, kind, estimated, measured)


def _trained(held: Stage, result: dict[str, Any], *, skipped: bool) -> Trained:
    values = TrainResult.model_validate(result)
    return Trained(result=values, folder=held.folder, skipped=skipped)


def step_words(step: dict[str, Any], price_per_s: float = 0.0) -> tuple[float, str]:
    """Share done and, in words, where it is, how fast, how long still and what it cost so far.

    `price_per_s` is that of all GPUs together.
    """
    total, done, seconds = step.get("total_steps") or 0, step["step"], step.get("seconds", 0.0)
    words = [f"step {done}" + (f" of {total}" if total else ""), f"loss {step['loss']:.3f}"]
    if "tokens_per_s" in step:
        words.append(f"{step['tokens_per_s']:,.0f} tokens/s")
    if memory := step.get("gpu_gib") or step.get("rss_gib"):
        words.append(f"{memory:.1f} GiB")
    if done and seconds:
        words.append(f"{max(total - done, 0) * seconds / done / 60:.1f} min left")
    if price_per_s:
        words.append(f"cost {seconds * price_per_s:.2f}")
    return (done / total if total else 0.0), ", ".join(words)
