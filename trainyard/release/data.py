"""Stage `data`: from sources to rows that may be trained on, or a refusal with reasons."""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trainyard import files, stage
from trainyard.data.check import check
from trainyard.data.locate import locate
from trainyard.data.verdict import DataVerdict
from trainyard.errors import Refused
from trainyard.recipe.base import Frozen
from trainyard.recipe.data import SourceSpec
from trainyard.release.job import Job, Progress, code_digest
from trainyard.stage import Stage

OUT = "out"
VERDICT = TypeAdapter(DataVerdict)


class Checked(Frozen):
    verdict: DataVerdict
    folder: Path
    skipped: bool

    @property
    def words(self) -> str:
        return ("same files, recipe and code: " if self.skipped else "") + summary(self.verdict)


def inputs(job: Job) -> dict[str, Any]:
    recipe = job.recipe
    return {
        "spec": recipe.data.model_dump(mode="json"),
        "sources": digest_sources(recipe.data.sources),
        "eval_sets": digest_sources(SourceSpec(path=s.data) for s in recipe.evaluate.suites),
        "base": job.base().digest,
        "max_seq_len": recipe.train.max_seq_len,
        "code": code_digest("data"),
    }


def digest_sources(sources: Iterable[SourceSpec]) -> dict[str, str]:
    """File -> sha256 of everything that the sources name, fetched where it is remote."""
    with tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        return {
            found.name: files.digest_file(found.path)
            for source in sources
            for found in locate(source, Path(scratch))
        }


def find(job: Job) -> Checked | None:
    """Return what an earlier run found in the same files."""
    held = stage.find(job.home, "data", inputs(job))
    found = held.finished()
    return _checked(held, found, skipped=True) if found else None


def run(job: Job, progress: Progress) -> Checked:
    """Raises Refused, with what was found, when the rows must not be trained on."""
    recipe = job.recipe
    with stage.opened(job.home, "data", inputs(job)) as held:
        found = held.finished()
        if found:
            checked = _checked(held, found, skipped=True)
        else:
            verdict = check(
                recipe.data,
                held.folder / OUT,
                eval_sets=[suite.data for suite in recipe.evaluate.suites],
                base_model=job.base().path,
                max_seq_len=recipe.train.max_seq_len,
                progress=lambda what, done, of: progress(done / max(of, 1), what),
            )
            result = held.finish(asdict(verdict), [OUT])
            checked = _checked(held, result, skipped=False)
        held.publish(OUT, job.folder / "data")
    if checked.verdict.verdict == "refuse":
        report = job.folder / "data" / "report.html"
        why = "; ".join(checked.verdict.problems)
        raise Refused(f"the data check refuses: {why}. {report} shows every row")
    return checked


def _checked(held: Stage, verdict: dict[str, Any], *, skipped: bool) -> Checked:
    return Checked(
        verdict=VERDICT.validate_python(verdict), folder=held.folder / OUT, skipped=skipped
    )


def summary(verdict: DataVerdict) -> str:
    found = ", ".join(f"{code} {count}" for code, count in verdict.reasons.items() if count)
    return (
        f"{verdict.lines} lines: {verdict.train} train, {verdict.val} val, "
        f"{verdict.quarantine} set aside" + (f" ({found})" if found else "")
    )
