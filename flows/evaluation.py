"""The other GPU part of a release: score a candidate beside base and champion."""

from prefect import flow

from tasks import evaluation as task
from tasks.policy import keeps_secrets
from trainyard import secrets
from trainyard.release.champion import Champion
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job
from trainyard.release.training import Trained


@keeps_secrets
@flow(name="evaluation", flow_run_name="evaluate {job.run_id}")
def evaluation(job: Job, trained: Trained, champion: Champion | None = None) -> Evaluated:
    """Ask candidate, base and champion the same questions, and keep every score."""
    secrets.know(job.recipe.model_dump())
    return task.evaluate(job, trained, champion)
