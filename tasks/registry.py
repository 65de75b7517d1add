"""Find the champion, and register a version that passed."""

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from tasks.policy import RETRY_DELAYS_S, keeps_secrets, worth_retrying
from trainyard import registration
from trainyard.release import champion, tracking, version
from trainyard.release.champion import Champion
from trainyard.release.job import Job
from trainyard.release.version import Candidate, Registered
from trainyard.run import Summary


@keeps_secrets
@task(
    name="find champion",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=3600,
)
def find_rival(job: Job, candidate: str) -> Champion | None:
    """Return the champion that the candidate has to beat, if there is one."""
    registration.catch_up(job.recipe.register, job.home, job.recipe.name)
    return champion.rival_of(champion.find_champion(job.recipe, job.home), candidate)


@keeps_secrets
@task(
    name="register",
    retries=3,
    retry_delay_seconds=[*RETRY_DELAYS_S, 120.0],
    retry_condition_fn=worth_retrying,
    timeout_seconds=6 * 3600,
)
def register(job: Job, summary: Summary, candidate: Candidate) -> Registered:
    registered = version.run(job, summary, candidate)
    create_link_artifact(key="version", link=registered.url, link_text=registered.served_name)
    return registered


@keeps_secrets
@task(name="track", timeout_seconds=1800, cache_policy=NO_CACHE)
def track(job: Job, summary: Summary) -> None:
    tracking.log(job, summary)
