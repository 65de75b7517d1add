"""Write the run's page, whatever the run came to."""

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from trainyard import report
from trainyard.release.job import Job
from trainyard.run import Run


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def write(job: Job, run: Run) -> None:
    path = report.write(job.folder, run.summary)
    run.summary.report = str(path)
    run.save()
    create_link_artifact(key="report", link=path.absolute().as_uri(), link_text=path.name)
    create_markdown_artifact(key="summary", markdown=report.as_markdown(run.summary))
