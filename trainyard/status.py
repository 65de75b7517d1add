"""What there is: runs, versions with their aliases, and what is served."""

from datetime import UTC, datetime
from pathlib import Path

from trainyard import cost, files, housekeeping, process, registration, rollout
from trainyard.recipe.base import Frozen
from trainyard.rollout import ModelStatus
from trainyard.run import Summary


class RunStatus(Frozen):
    run_id: str
    recipe: str
    status: str
    """As in its summary; `interrupted` when the process that ran it is gone."""
    verdict: str | None
    stage: str | None
    """Stage that it is in, or that failed."""
    reason: str | None
    version: str | None


class Status(Frozen):
    runs: list[RunStatus]
    """The newest first."""
    served: list[ModelStatus]
    parked: list[str]
    """Versions that passed and wait for their registry or archive, each with the reason."""
    spent: str | None
    """Money and GPU-hours of this month."""
    estimates: str | None
    """How far the last plans were off."""
    alarm: str | None
    """A disk that is nearly full."""


def read(home: Path) -> Status:
    summaries = sorted((home / "runs").glob("*/summary.json"), key=lambda p: p.stat().st_mtime)
    parked = [
        f"{waiting.record.name}@{waiting.record.digest[:12]} since {waiting.since}: {waiting.why}"
        for waiting in registration.parked(home)
    ]
    return Status(
        runs=[_run(path) for path in reversed(summaries)],
        served=rollout.status(home),
        parked=parked,
        spent=cost.month_words(home, datetime.now(UTC)),
        estimates=cost.error_words(cost.entries(home)),
        alarm=housekeeping.alarm(home),
    )


def _run(path: Path) -> RunStatus:
    summary = Summary.model_validate(files.read_json(path))
    gone = summary.status == "running" and not process.is_alive(summary.process)
    last = summary.stages[-1].name if summary.stages else None
    return RunStatus(
        run_id=summary.run_id,
        recipe=summary.recipe,
        status="interrupted" if gone else summary.status,
        verdict=summary.verdict,
        stage=summary.failed_stage or (last if summary.status == "running" else None),
        reason=summary.error,
        version=summary.version,
    )


def as_text(status: Status, newest: int = 10) -> str:
    lines = ["runs" if status.runs else "no runs yet: `make demo` makes the first"]
    for run in status.runs[:newest]:
        words = [run.status, run.verdict or "", run.version or "", run.stage and f"at {run.stage}"]
        reason = (run.reason or "").splitlines()
        lines.append("  ".join([f"  {run.run_id}", *filter(None, words), *reason[:1]]))
    if status.parked:
        lines += ["parked: the next release registers these", *(f"  {p}" for p in status.parked)]
    if status.served:
        lines.append("served")
    for model in status.served:
        state = "ready" if model.ready else "not running"
        where = model.endpoint or "no gateway"
        at = "" if model.environment == "production" else f" in {model.environment}"
        lines.append(f"  {model.name}{at}  {model.champion or 'no champion'}  {state}  {where}")
        if model.weight:
            lines.append(f"    canary {model.candidate} has {model.weight:g} %")
    lines += [f"spent: {status.spent}"] if status.spent else []
    lines += [status.estimates] if status.estimates else []
    return "\n".join([*lines, *([status.alarm] if status.alarm else [])])
