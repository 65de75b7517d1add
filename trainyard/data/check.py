"""Check a data set: from sources to a version in a folder, or to one sentence why not.

`prepare` says what is to be done, `check_chunk` (any process, any order) does it, `finish` brings
it together. Work lies in a hidden folder beside `out` and survives a crash: finished chunks are
taken over. `out` gets its files at the end, `manifest.json` last.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainyard.data.chunk import check_chunk
from trainyard.data.containers import Table, open_table
from trainyard.data.finish import finish
from trainyard.data.job import Job
from trainyard.data.leakage import read_eval_sets
from trainyard.data.lines import Chunk, cut, first
from trainyard.data.locate import locate
from trainyard.data.sample import common_grams
from trainyard.data.template import Template
from trainyard.data.tokens import FastTokens
from trainyard.data.tools import not_collecting, tools_of
from trainyard.data.verdict import DataVerdict
from trainyard.data.worker import Worker, start
from trainyard.errors import InputError, TrainyardError
from trainyard.files import digest_file, digest_json, why
from trainyard.recipe.data import DataSpec, SourceSpec

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""

Runner = Callable[[Path, Sequence[int], Callable[[], None]], None]
"""Checks these chunks of a job file, in any order and place, and calls back after each."""

CHUNK = 16 << 20
CHUNK_WITH_TOKENS = 4 << 20
IN_PROCESS = 12 << 20
"""Bytes below which starting other processes costs more than it saves."""


def check(
    spec: DataSpec,
    out: Path,
    *,
    eval_sets: Sequence[str] = (),
    base_model: Path | None = None,
    max_seq_len: int | None = None,
    previous: Path | None = None,
    processes: int = 0,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> DataVerdict:
    """Write the version `out` and say whether it may be trained on.

    `previous` is the version to compare with; `processes` 0 means one per core, and `runner` takes
    their place. Raises InputError for what cannot be read, and then `out` is as it was before.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder for the data version")
    work = work_folder(out)
    tell = progress if progress is not None else _silent
    try:
        with not_collecting():
            job = prepare(
                spec, work, eval_sets=eval_sets, base_model=base_model, max_seq_len=max_seq_len,
                progress=tell,
            )  # fmt: skip
            run_chunks(job, processes, tell, runner)
            tell("comparing rows", 0, 1)
            verdict = finish(job, out, previous)
            tell("comparing rows", 1, 1)
    except TrainyardError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        said = why(error, out)
        shutil.rmtree(work, ignore_errors=True)
        raise InputError(said) from None
    shutil.rmtree(work, ignore_errors=True)
    return verdict


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.work"


def prepare(
    spec: DataSpec,
    work: Path,
    *,
    eval_sets: Sequence[str] = (),
    base_model: Path | None = None,
    max_seq_len: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Open every source and write `job.json`; returns its path."""
    tell = progress if progress is not None else _silent
    work = work.absolute()  # chunks may be checked from another working folder
    template = Template.load(base_model) if base_model is not None else None
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    tables: list[Table] = []
    sources: list[SourceSpec] = []
    for i, source in enumerate(spec.sources):
        tell("reading sources", i, len(spec.sources))
        for found in locate(source, work / "fetched"):
            table = open_table(found.path.absolute(), found.name, i, found.spec, work)
            tables.append(replace(table, dvc_md5=found.dvc_md5))
            sources.append(found.spec)
            if found.dvc_md5 is not None and not found.dvc_md5.endswith(".dir"):
                _dvc_matches(found.path, found.name, found.dvc_md5)
    size = CHUNK_WITH_TOKENS if template is not None else CHUNK
    chunks: list[tuple[int, Chunk]] = []
    left = {table.source: found.rows for table, found in zip(tables, sources, strict=True)}
    for t, table in enumerate(tables):
        taken, left[table.source] = first(cut(table, size), left[table.source])
        chunks += [(t, chunk) for chunk in taken]
    common = work / "common.npy"
    grams = common_grams(
        [c for _, c in chunks], [sources[t] for t, _ in chunks], spec.max_row_bytes
    )
    np.save(common, grams.shingles)
    found_sets = None
    if eval_sets and {spec.checks.leak, spec.checks.eval_overlap} != {"off"}:
        found_sets = work / "eval_sets.npz"
        read_eval_sets(eval_sets, grams.long, grams.prompt).save(found_sets)
    job = Job(
        folder=work,
        spec=spec,
        tables=tuple(tables),
        sources=tuple(sources),
        chunks=tuple((t, c.start, c.end, c.first_line, c.lines) for t, c in chunks),
        common=common,
        eval_sets=found_sets,
        model=base_model.absolute() if base_model is not None else None,
        max_seq_len=max_seq_len,
        fast_tokens=template is not None and fast_tokens(template, grams.texts),
        inputs=digest_json(
            [
                spec.model_dump(mode="json", exclude={"train", "limits", "val_fraction"}),
                digest_file(common),
                digest_file(found_sets) if found_sets is not None else None,
                template.digest if template is not None else None,
                max_seq_len,
            ]
        ),
    )
    return job.save()


def fast_tokens(template: Template, texts: Sequence[str]) -> bool:
    """Whether the fast way may be taken: it gave identical ids for all of `texts`."""
    fast = FastTokens.of(template)
    return fast is not None and fast.agrees(template, texts)


def run_chunks(
    job_file: Path, processes: int, tell: Progress, runner: Runner | None = None
) -> None:
    """Check all chunks that are not finished: by `runner`, or here when they are small."""
    job = Job.load(job_file)
    total = len(job.chunks)
    todo = [i for i in range(total) if not (job.place(i) / "info.json").is_file()]
    size = sum(job.tables[job.chunks[i][0]].path.stat().st_size for i in todo[:1])
    small = len(todo) < 2 or (size < IN_PROCESS and job.model is None)
    wanted = min(processes or _cores(), len(todo))
    done = total - len(todo)
    if runner is not None:
        counted = itertools.count(done + 1)
        tell("checking rows", done, total)
        runner(job_file, todo, lambda: tell("checking rows", next(counted), total))
        return
    if small or wanted < 2:
        for i in todo:
            tell("checking rows", done, total)
            check_chunk(job_file, i)
            done += 1
        tell("checking rows", done, total)
        return
    _in_processes(job_file, [todo[k::wanted] for k in range(wanted)], done, total, tell)


def _in_processes(
    job_file: Path, shares: list[list[int]], done: int, total: int, tell: Progress
) -> None:
    """The first share here, each other one in a process of its own."""
    workers: list[Worker] = []
    own, *others = shares
    tools_of(Job.load(job_file))  # a fork takes them along
    try:
        workers += [start(job_file, share) for share in others]
        for number in own:
            tell("checking rows", done, total)
            check_chunk(job_file, number)
            done += 1 + sum(worker.told(wait=False) for worker in workers)
        for worker in workers:
            while told := worker.told(wait=True):
                tell("checking rows", done, total)
                done += told
            if problem := worker.problem():
                raise InputError(problem)
        tell("checking rows", done, total)
    finally:
        for worker in workers:
            worker.end()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _dvc_matches(path: Path, name: str, md5: str) -> None:
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if found != md5:
        raise InputError(f"{name} has md5 {found}, its DVC pointer says {md5}: run `dvc checkout`")


def _silent(_what: str, _done: int, _total: int) -> None:
    return
