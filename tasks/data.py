"""Check the data."""

from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.policy import RETRY_DELAYS_S, worth_retrying
from tasks.progress import shown
from trainyard.release import data
from trainyard.release.job import Job


@task(
    name="check data",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=6 * 3600,
)
def check(job: Job) -> data.Checked:
    try:
        return data.run(job, shown("data"))
    finally:
        report = job.folder / "data" / "report.md"
        if report.exists():
            create_markdown_artifact(key="data-report", markdown=report.read_text(encoding="utf-8"))
