"""A Prefect server of our own for a run without one: same database and UI, gone when we are."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from trainyard.errors import Unavailable
from trainyard.process import die_with_parent, free_port

QUIET = {
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # a quarter of the server's start: it would load every worker's library to list its blocks
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}


@contextmanager
def server_at_hand(log: Path, *, deadline_s: float = 90) -> Iterator[None]:
    """Use the server that PREFECT_API_URL names; without one, start one for the time being.

    Prefect would start one by itself, but that one outlives a killed parent.
    """
    if PREFECT_API_URL.value():
        yield
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        server = subprocess.Popen(
            _command(port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | QUIET,
            preexec_fn=die_with_parent,
        )
    try:
        _wait_until_healthy(server, url, log, deadline_s)
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield
            finally:
                APILogHandler().flush()
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _command(port: int) -> list[str]:
    app = "prefect.server.api.server:create_app"
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "uvicorn", "--factory", app, *where, "--log-level", "error"]


def _wait_until_healthy(
    server: subprocess.Popen[bytes], url: str, log: Path, deadline_s: float
) -> None:
    end = time.monotonic() + deadline_s
    while server.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    state = f"ended with {server.returncode}" if server.poll() is not None else "did not answer"
    raise Unavailable(f"the Prefect server {state} within {deadline_s:.0f} s; its log is {log}")
