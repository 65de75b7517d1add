"""Train the adapter. Out of memory, hangs and crashes are the launcher's to heal, not Prefect's."""

from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from tasks.progress import shown
from trainyard import slots
from trainyard.release import training
from trainyard.release.data import Checked
from trainyard.release.job import Job
from trainyard.report import loss_markdown
from trainyard.run import working


@keeps_secrets
@task(
    name="train",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
)
def train(job: Job, checked: Checked) -> training.Trained:
    with slots.held(job.recipe.resources, job.run_id):
        working(job.folder, "train")
        trained = training.run(job, checked, shown("train"))
    create_markdown_artifact(key="loss-curve", markdown=loss_markdown(job.folder))
    return trained
