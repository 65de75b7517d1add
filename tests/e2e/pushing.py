"""A git repository, a Prefect server, a worker and the webhook beside a clone: a push releases."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.throwaway import a_database, a_server, running, wait_for
from tests.e2e.conftest import Clone
from tests.services.webhook import conftest as team
from tests.services.webhook import forges, payloads
from trainyard.process import free_port

NAME = "acme/models"


class Pushing:
    """The clone's files as a repository that the webhook knows."""

    def __init__(self, clone: Clone, origin: Path, url: str, forge: forges.StubForge) -> None:
        self.clone, self.origin, self.url, self.forge = clone, origin, url, forge

    def commit(self) -> str:
        """Commit the clone's files as they are, and return the commit."""
        where = [f"--git-dir={self.origin}", f"--work-tree={self.clone.folder}"]
        team.git(self.clone.folder, *where, "add", "-A")
        team.git(self.clone.folder, *where, "commit", "-q", "--allow-empty", "-m", "change")
        return team.git(self.origin, "rev-parse", "main")

    def deliver(self, before: str, after: str) -> httpx.Response:
        """Tell the webhook of the push, as GitHub does."""
        body = payloads.encode(payloads.push("github", NAME, "main", before, after))
        headers = payloads.signed("github", "push", body, team.SECRET)
        return httpx.post(f"{self.url}/hooks/acme", content=body, headers=headers, timeout=60)

    def outcome(self, sha: str) -> dict[str, str]:
        """Wait for the status that the webhook gives the commit when its release has ended."""

        def ended() -> dict[str, str] | None:
            last = self.forge.statuses[sha][-1:]
            return last[0] if last and last[0]["state"] != "pending" else None

        return team.eventually(ended, 600)


@contextmanager
def pushing(clone: Clone, recipe: str) -> Iterator[Pushing]:
    """`recipe` is released when a push changes it."""
    with (
        TemporaryDirectory(prefix="trainyard-", dir="/tmp") as name,
        a_database(Path(name)) as database,
        a_server(Path(name), database) as api,
        temporary_settings({PREFECT_API_URL: api}),
        forges.running("github") as forge,
    ):
        root = Path(name)
        url = f"http://127.0.0.1:{free_port()}"
        made = Pushing(clone, root / "origin.git", url, forge)
        team.git(root, "init", "-q", "--bare", "-b", "main", str(made.origin))
        team.deploy(clone.folder, api)
        (root / "token").write_text(forges.TOKEN)
        repository = {"name": NAME, "url": str(made.origin), "recipes": [recipe]}
        hook = {"provider": "github", "secrets": ["env:HOOK_SECRET"], "api": forge.url,
                "api_token": f"file:{root / 'token'}", "repositories": [repository]}  # fmt: skip
        config = {"port": int(url.rpartition(":")[2]), "prefect_api": api, "watch_s": 1,
                  "hooks": {"acme": hook}}  # fmt: skip
        (root / "webhook.yaml").write_text(yaml.safe_dump(config))
        python = [sys.executable, "-m"]
        service = [*python, "trainyard", "webhook", "--config", str(root / "webhook.yaml")]
        worker = [*python, "prefect", "worker", "start", "--pool", "cpu"]
        env = clone.env | {"PREFECT_API_URL": api, "PREFECT_WORKER_QUERY_SECONDS": "1",
                           "HOOK_SECRET": team.SECRET}  # fmt: skip
        made.commit()  # what is on the branch when the service starts was there before
        with (
            running(service, env, root / "webhook.log", clone.folder),
            running(worker, env, root / "worker.log", clone.folder),
        ):
            wait_for(f"{url}/health")
            yield made
            # stopped with its worker, a run that is about to end would take its engines along
            clone.wait_for("the end of the run", lambda: not clone.runs())
