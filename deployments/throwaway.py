"""A Prefect server of its own in a folder, for tests and benches: gone when the block ends."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from deployments import postgres
from trainyard import process

START_S = 300.0
"""A slow machine takes a minute for what takes ten seconds elsewhere."""


@contextmanager
def a_database(root: Path) -> Iterator[str | None]:
    """PostgreSQL where it is installed and its user may enter `root`; None otherwise."""
    binaries = postgres.find_binaries()
    root.chmod(0o755)
    if binaries is None or not postgres.can_reach(root / "pg"):
        yield None
        return
    server, url = postgres.start(root / "pg" / "data", root / "postgres.log", binaries)
    try:
        yield url
    finally:
        process.stop(process.record(server.pid))
        server.wait()


@contextmanager
def a_server(root: Path, database: str | None) -> Iterator[str]:
    """Yield the address of its API. Without `database` it keeps Prefect's SQLite in `root`."""
    port = process.free_port()
    env = os.environ | {"PREFECT_HOME": str(root / "prefect"), "DO_NOT_TRACK": "1"}
    env["PREFECT_API_BLOCKS_REGISTER_ON_START"] = "false"  # a quarter of its start
    env |= {"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with running(command, env, root / "server.log"):
        api = f"http://127.0.0.1:{port}/api"
        wait_for(f"{api}/health")
        yield api


@contextmanager
def running(
    command: list[str], env: dict[str, str], log: Path, cwd: Path | None = None
) -> Iterator[None]:
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=cwd)
    try:
        yield
    finally:
        process.stop(process.record(child.pid))
        child.wait()


def wait_for(url: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not answer in {START_S:.0f} s")
