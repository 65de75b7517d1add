"""Say what a release will do before it does it."""

from prefect import task
from prefect.artifacts import create_table_artifact

from trainyard import files, plan
from trainyard.release.job import Job


@task(name="plan")
def make(job: Job) -> plan.Plan:
    """Raises InputError when something in the recipe can never work."""
    made = plan.make(job.recipe, job.home)
    files.write_json(job.folder / "plan.json", made.model_dump(mode="json"))
    files.write_json(job.folder / "recipe.json", job.recipe.model_dump(mode="json"))
    rows = [stage.model_dump() for stage in made.stages]
    create_table_artifact(key="plan", table=rows, description=plan.headline(made))
    made.raise_problems()
    return made
