"""Score candidate, base and champion on the same questions."""

from prefect import task

from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from tasks.progress import shown
from trainyard import slots
from trainyard.release import evaluation
from trainyard.release.champion import Champion
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.run import working


@keeps_secrets
@task(
    name="evaluate",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=24 * 3600,
)
def evaluate(job: Job, trained: Trained, champion: Champion | None) -> evaluation.Evaluated:
    with slots.held(job.recipe.resources, job.run_id):
        working(job.folder, "evaluate")
        return evaluation.run(job, trained, champion, shown("evaluate"))
