"""Check the data, its chunks wherever the environment says."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.futures import as_completed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from tasks.progress import shown
from trainyard.environment import HERE, ChunkRunner
from trainyard.errors import InputError
from trainyard.release import data
from trainyard.release.job import Job


@keeps_secrets
@task(
    name="check data",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=6 * 3600,
)
def check(job: Job, where: ChunkRunner) -> data.Checked:
    run = data.run if where.runner == HERE else partial(data.run, runner=partial(run_chunks, where))
    try:
        return run(job, shown("data"), previous=data.previous(job), processes=where.workers or 0)
    finally:
        report = job.folder / "data" / "report.md"
        if report.exists():
            create_markdown_artifact(key="data-report", markdown=report.read_text(encoding="utf-8"))


@keeps_secrets
@task(name="check chunk", task_run_name="check chunk {number}", retries=1)
def check_chunk(job_file: Path, number: int) -> None:
    from trainyard.data import chunk

    chunk.check_chunk(job_file, number)


def run_chunks(
    where: ChunkRunner, job_file: Path, numbers: Sequence[int], done: Callable[[], None]
) -> None:
    """Check chunks by a Prefect task runner. Raises what the first failing chunk raised."""
    with task_runner(where) as runner:
        futures = [runner.submit(check_chunk, {"job_file": job_file, "number": n}) for n in numbers]
        for future in as_completed(futures):
            future.result()
            done()


def task_runner(where: ChunkRunner) -> TaskRunner[Any]:
    """Raises InputError when the runner is not installed."""
    workers = where.workers
    if where.runner == "threads":
        return ThreadPoolTaskRunner(**({"max_workers": workers} if workers else {}))
    if where.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=workers)
    try:
        return _dask(where) if where.runner == "dask" else _ray(where)
    except ModuleNotFoundError as error:
        raise InputError(
            f"chunks are to run by {where.runner}, and {error.name} is not installed: "
            f"pip install prefect-{where.runner}"
        ) from None


def _dask(where: ChunkRunner) -> TaskRunner[Any]:
    from prefect_dask import DaskTaskRunner

    sizes = {"n_workers": where.workers} if where.workers else {}
    cluster = None if where.address else {"threads_per_worker": 1, **sizes}
    made: TaskRunner[Any] = DaskTaskRunner(address=where.address, cluster_kwargs=cluster)
    return made


def _ray(where: ChunkRunner) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    sizes = {"num_cpus": where.workers} if where.workers else {}
    made: TaskRunner[Any] = RayTaskRunner(address=where.address, init_kwargs=sizes)
    return made
