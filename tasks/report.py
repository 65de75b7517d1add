"""Write the run's page, whatever the run came to."""

import logging
from datetime import UTC, datetime

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.policy import keeps_secrets
from trainyard import cost, report
from trainyard.plan import Plan
from trainyard.release.job import Job
from trainyard.run import Run


def book(job: Job, run: Run) -> None:
    """What it cost: the book never fails a release."""
    try:
        cost.book(job, run.summary)
    except Exception as error:  # a release never fails for its accounts
        logging.getLogger("trainyard.cost").warning("cost: %s: %s", type(error).__name__, error)


def reserve(job: Job, plan: Plan) -> None:
    """Set aside what the plan says. Raises Refused when others have so much set aside already."""
    cost.reserve(job, plan.cost if plan.spends else None, datetime.now(UTC))


def check_budget(job: Job, run: Run) -> None:
    """Raises Refused when the run has come to cost more than a budget has left."""
    cost.check(job, run.summary, datetime.now(UTC))


@keeps_secrets
@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def write(job: Job, run: Run) -> None:
    path = report.write(job.folder, run.summary)
    run.summary.report = str(path)
    run.save()
    create_link_artifact(key="report", link=path.absolute().as_uri(), link_text=path.name)
    create_markdown_artifact(key="summary", markdown=report.as_markdown(run.summary))
