"""The GPU part of a release: train one adapter."""

from prefect import flow

from tasks import training as task
from tasks.policy import keeps_secrets
from trainyard import secrets
from trainyard.release.data import Checked
from trainyard.release.job import Job
from trainyard.release.training import Trained


@keeps_secrets
@flow(name="training", flow_run_name="train {job.run_id}")
def training(job: Job, checked: Checked) -> Trained:
    """Fine-tune on the checked rows, going on from the last checkpoint where there is one."""
    secrets.know(job.recipe.model_dump())
    return task.train(job, checked)
