"""All of it on loopback: git repositories, git servers' APIs, Prefect, a worker, the service."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import pools
from deployments.throwaway import a_database, a_server
from tests.services.webhook import forges, payloads
from trainyard.process import free_port

SECRET = "word-shared-with-the-git-server"
PROVIDERS = ("github", "gitlab", "gitea")
REPOSITORIES = ("models", "proposals", "order", "forced", "gone", "lost", "newer", "refused")
Found = TypeVar("Found")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def eventually(what: Callable[[], Found | None], seconds: float = 240) -> Found:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s")


class Repository:
    """A working copy, and the bare repository that it pushes to."""

    def __init__(self, provider: str, name: str, bare: Path, work: Path) -> None:
        self.provider, self.name, self.bare, self.work = provider, name, bare, work

    def commit(self, changes: dict[str, str | None]) -> str:
        for path, text in changes.items():
            file = self.work / path
            if text is None:
                file.unlink()
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, errors="surrogateescape")  # a row that is not UTF-8
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "--allow-empty", "-m", "change")
        return git(self.work, "rev-parse", "HEAD")

    def push(self, ref: str = "HEAD:refs/heads/main", *options: str) -> None:
        git(self.work, "push", "-q", *options, "origin", ref)

    @property
    def tip(self) -> str:
        return git(self.bare, "rev-parse", "refs/heads/main")


class World:
    def __init__(self, url: str, repositories: dict[str, Repository], api: str) -> None:
        self.url, self.repositories, self.api = url, repositories, api
        self.forges: dict[str, forges.StubForge] = {}
        self.root = Path()
        self.home = Path()

    def deliver(
        self, provider: str, event: str, payload: dict[str, Any], id_: str | None = None
    ) -> httpx.Response:
        body = payloads.encode(payload)
        return self.post(provider, body, payloads.signed(provider, event, body, SECRET, id_))

    def post(self, hook: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{self.url}/hooks/{hook}", content=body, headers=headers, timeout=30)

    def pushed(self, where: Repository, before: str, after: str) -> httpx.Response:
        event = payloads.EVENTS[where.provider][0]
        payload = payloads.push(where.provider, where.name, "main", before, after)
        return self.deliver(where.provider, event, payload)

    def runs(self, where: Repository) -> list[dict[str, Any]]:
        """Every Prefect run that the repository started."""
        tags = {"tags": {"all_": [where.name]}}
        reply = httpx.post(f"{self.api}/flow_runs/filter", json={"flow_runs": tags}, timeout=30)
        found: list[dict[str, Any]] = reply.raise_for_status().json()
        return [run for run in found if run["tags"]]

    def idle(self) -> bool:
        counts = httpx.get(f"{self.url}/health", timeout=30).json()
        return not counts.get("jobs_waiting")


RECIPE = Path("recipes/quickstart.yaml").read_text()
SECOND = RECIPE.replace("name: quickstart", "name: second")


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as a team has it: the project, with two recipes."""
    folder = tmp_path_factory.mktemp("seed") / "seed.git"
    work = folder.with_suffix("")
    skip = shutil.ignore_patterns("__pycache__", "base")
    for name in ("flows", "tasks", "deployments", "recipes/quickstart"):
        shutil.copytree(name, work / name, ignore=skip)
    shutil.copytree("recipes/quickstart/base", work / "recipes/quickstart/base")
    (work / "recipes/quickstart.yaml").write_text(RECIPE)
    (work / "recipes/second.yaml").write_text(SECOND)
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "first")
    git(work, "clone", "-q", "--bare", ".", str(folder))
    return folder


@pytest.fixture(scope="session")
def world(seed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    with ExitStack() as stack:
        # as a team runs it: on SQLite a slow machine locks worker and runs out for minutes
        server = Path(stack.enter_context(TemporaryDirectory(prefix="trainyard-", dir="/tmp")))
        api = stack.enter_context(a_server(server, stack.enter_context(a_database(server))))
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        deploy(root, api)
        apis = {name: stack.enter_context(forges.running(name)) for name in PROVIDERS}
        found = {name: _repository(name, seed, root) for name in _names()}
        world = World(f"http://127.0.0.1:{free_port()}", found, api)
        world.forges, world.root, world.home = apis, root, root / ".trainyard"
        stack.callback(end, _service(world, root))
        eventually(lambda: _answers(world.url), 200)
        yield world


@pytest.fixture
def worker(world: World) -> Iterator[None]:
    """Only for the runs that a test waits for: elsewhere it is enough that they exist."""
    env = os.environ | {"PREFECT_API_URL": world.api, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu"]
    with (world.root / "worker.log").open("wb") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=world.root)
    yield
    end(child)


def _names() -> list[str]:
    return [*(f"{p}:{p}/models" for p in PROVIDERS), *(f"{p}:{p}/proposals" for p in PROVIDERS),
            *(f"github:acme/{name}" for name in REPOSITORIES[2:])]  # fmt: skip


def _repository(named: str, seed: Path, root: Path) -> Repository:
    provider, name = named.split(":")
    bare = root / "git" / provider / f"{name}.git"
    work = root / "work" / provider / name
    git(seed, "clone", "-q", "--bare", ".", str(bare))
    git(seed, "clone", "-q", str(bare), str(work))
    return Repository(provider, name, bare, work)


def deploy(root: Path, api: str) -> None:
    pools.apply(pools.read_pools())
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "-n", "pushed"]
    env = os.environ | {
        "PREFECT_API_URL": api, "TRAINYARD_ROOT": str(root), "TRAINYARD_ENVIRONMENT": "laptop",
    }  # fmt: skip
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _service(world: World, root: Path) -> "subprocess.Popen[bytes]":
    hooks: dict[str, Any] = {}
    for provider in PROVIDERS:
        hooks[provider] = {
            "provider": provider,
            "proof": "signature" if provider == "gitlab" else "hmac",
            "secrets": ["env:HOOK_SECRET"],
            "api": world.forges[provider].url,
            "api_token": f"file:{root / 'token'}",
            "repositories": [
                {"name": r.name, "url": str(r.bare), "dry_run": True}
                | ({"deployment": "release/nowhere"} if r.name == "acme/refused" else {})
                for r in world.repositories.values()
                if r.provider == provider
            ],
        }
    (root / "token").write_text(forges.TOKEN)
    config = {
        "port": int(world.url.rpartition(":")[2]),
        "prefect_api": world.api,
        "poll_s": 10,
        "watch_s": 0.5,
        "max_body_mib": 1,
        "deliveries_per_minute": 20,
        "hooks": hooks,
    }
    (root / "webhook.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "trainyard", "webhook", "--config", str(root / "webhook.yaml"),
               "--home", str(world.home)]  # fmt: skip
    env = os.environ | {"HOOK_SECRET": SECRET}
    with (root / "service.log").open("wb") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
