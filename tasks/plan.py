"""Say what a release will do before it does it."""

from prefect import task
from prefect.artifacts import create_table_artifact

from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from trainyard import files, plan
from trainyard.environment import Environment
from trainyard.errors import InputError, Refused
from trainyard.release.job import Job


@keeps_secrets
@task(
    name="plan",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=600,
)
def make(job: Job, where: Environment) -> plan.Plan:
    """Raises InputError when something in the recipe can never work, Refused over budget."""
    made = plan.make(job, where)
    files.write_json(job.folder / "plan.json", made.model_dump(mode="json"))
    files.write_json(job.folder / "recipe.json", job.recipe.model_dump(mode="json"))
    rows = [stage.model_dump() for stage in made.stages]
    create_table_artifact(key="plan", table=rows, description=made.words)
    if made.problems:
        raise InputError("; ".join(made.problems))
    if made.over_budget:
        raise Refused(f"budget: {made.over_budget}")
    return made
