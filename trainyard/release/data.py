"""Stage `data`: from sources to rows that may be trained on, or a refusal with reasons.

The rows are compared with those the champion was trained on, so these are an input of the stage,
unless they are what it would make again.
"""

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from trainyard import files, stage
from trainyard.data.locate import locate
from trainyard.data.verdict import DataVerdict
from trainyard.errors import Refused
from trainyard.recipe.base import Frozen
from trainyard.recipe.data import SourceSpec
from trainyard.release.champion import Champion, find_champion
from trainyard.release.job import Job, Progress, code_digest
from trainyard.stage import Stage

OUT = "out"
DATA = "data"
"""Folder of a version with the facts of its rows, without their text."""
FACTS = ("facts.parquet", "verdict.json", "manifest.json")
VERDICT = TypeAdapter(DataVerdict)

if TYPE_CHECKING:
    from trainyard.data.check import Runner

logger = logging.getLogger(__name__)


class Previous(Frozen):
    """The rows that the champion was trained on."""

    folder: Path
    digest: str


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
        "eval_sets": digest_sources(SourceSpec(path=path) for path in recipe.evaluate.eval_sets),
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


def previous(job: Job) -> Previous | None:
    """Rows of the champion: in its version, or in the stage that made them on this machine."""
    champion = find_champion(job.recipe, job.home)
    return previous_of(champion, job.home) if champion is not None else None


def previous_of(champion: Champion, home: Path) -> Previous | None:
    lineage = files.read_json(champion.folder / "lineage.json")
    digest = str(lineage["data"]["digest"])
    stages = (made.parent / OUT for made in _finished(home))
    for folder in (champion.folder / DATA, *stages):
        manifest = folder / "manifest.json"
        if manifest.is_file() and files.read_json(manifest)["digest"] == digest:
            return Previous(folder=folder, digest=digest)
    logger.warning("drift is not measured: the rows of %s are not here", champion.served_name)
    return None


def _finished(home: Path) -> list[Path]:
    return sorted((home / "stages" / "data").glob(f"*/{stage.MANIFEST}"))


def find(job: Job, before: Previous | None) -> Checked | None:
    """Return what an earlier run found in the same files."""
    held = _place(job, before)
    found = held.finished()
    return _checked(held, found, skipped=True) if found else None


def _place(job: Job, before: Previous | None) -> Stage:
    """The stage with these inputs; the one that made the champion's rows from them, if it is here.

    That one was compared with rows before, and comparing it with itself would show nothing.
    """
    known, digest = inputs(job), before and before.digest
    for manifest in _finished(job.home) if before is not None else ():
        made = files.read_json(manifest)
        same = made["inputs"] == known | {"previous": made["inputs"].get("previous")}
        if same and made["result"]["digest"] == digest:
            return stage.find(job.home, "data", made["inputs"])
    return stage.find(job.home, "data", known | {"previous": digest})


def run(
    job: Job,
    progress: Progress,
    *,
    previous: Previous | None = None,
    processes: int = 0,
    runner: "Runner | None" = None,
) -> Checked:
    """Raises Refused, with what was found, when the rows must not be trained on."""
    recipe = job.recipe
    with stage.opened(job.home, "data", _place(job, previous).inputs) as held:
        found = held.finished()
        if found:
            checked = _checked(held, found, skipped=True)
        else:
            from trainyard.data.check import check

            verdict = check(
                recipe.data,
                held.folder / OUT,
                eval_sets=list(recipe.evaluate.eval_sets),
                base_model=job.base().path,
                max_seq_len=recipe.train.max_seq_len,
                previous=previous.folder if previous is not None else None,
                processes=processes,
                runner=runner,
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
