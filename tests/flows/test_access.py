"""A Prefect server with a credential: nothing answers without it, and a release works with it."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from tests import nginx
from trainyard.process import free_port

CREDENTIAL = "admin:pl4nted-password-5512"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("access"), free_port()
    env = os.environ | {
        "PREFECT_SERVER_API_AUTH_STRING": CREDENTIAL,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    env.pop("PREFECT_API_URL", None)
    app = ["--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    command = [sys.executable, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    end = time.monotonic() + 240
    while not _listens(url):
        assert running.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.5)
    yield url
    running.terminate()
    running.wait(60)


def _listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code < 500
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "flows/filter"),
        ("POST", "flow_runs/filter"),
        ("POST", "logs/filter"),
        ("POST", "artifacts/filter"),
        ("POST", "block_documents/filter"),
        ("POST", "variables/filter"),
        ("POST", "work_pools/filter"),
        ("POST", "deployments/filter"),
        ("POST", "events"),
        ("GET", "admin/settings"),
        ("GET", "concurrency_limits/filter"),
    ],
)
def test_nothing_of_the_api_answers_without_its_credential(
    server: str, method: str, path: str
) -> None:
    for auth in (None, ("admin", "wrong")):
        reply = httpx.request(method, f"{server}/{path}", json={}, auth=auth, timeout=60)
        assert reply.status_code == 401, (path, reply.text)


def test_a_release_works_with_the_credential_and_says_so_without(
    server: str, tmp_path: Path
) -> None:
    for name in ("recipes", "deployments", "constraints.txt"):
        (tmp_path / name).symlink_to(Path(name).absolute())
    env = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(Path.cwd()),
                        "PREFECT_HOME": str(tmp_path / "prefect")}  # fmt: skip
    command = [sys.executable, "-m", "flows.release", "recipes/quickstart.yaml", "--dry-run"]

    def run(**more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, env=env | more, cwd=tmp_path, capture_output=True, text=True, check=False,
            timeout=240,
        )  # fmt: skip

    refused = run()
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "set PREFECT_API_AUTH_STRING" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
    done = run(PREFECT_API_AUTH_STRING=CREDENTIAL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert CREDENTIAL.split(":")[1] not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def front(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nginx.Front]:
    upstream = server.removesuffix("/api")
    with nginx.in_front(
        tmp_path_factory.mktemp("nginx"), prefect=upstream, mlflow=upstream
    ) as front:
        yield front


def test_behind_nginx_there_is_only_tls_and_only_with_a_credential(front: nginx.Front) -> None:
    known = ssl.create_default_context(cafile=str(front.ca))
    name, password = CREDENTIAL.split(":")
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{front.prefect}/api/health", timeout=60)
    plain = front.prefect.replace("https", "http")
    assert httpx.get(f"{plain}/api/health", timeout=60).status_code == 400
    with httpx.Client(verify=known, timeout=60) as client:
        asked = f"{front.prefect}/api/flows/filter"
        assert client.post(asked, json={}).status_code == 401
        assert client.post(asked, json={}, auth=(name, password)).status_code == 200


def test_prefects_own_client_needs_the_ca_and_the_credential(front: nginx.Front) -> None:
    address, ca = (
        {PREFECT_API_URL: f"{front.prefect}/api"},
        {PREFECT_API_SSL_CERT_FILE: str(front.ca)},
    )
    credential = {PREFECT_API_AUTH_STRING: CREDENTIAL}
    once = {PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(address | ca | credential), get_client(sync_client=True) as client:
        client.read_flows()  # raises unless it may
    with (
        temporary_settings(address | ca | once),
        get_client(sync_client=True) as client,
        pytest.raises(PrefectHTTPStatusError, match="401"),
    ):
        client.read_flows()
    with (
        temporary_settings(address | credential | once),
        get_client(sync_client=True) as client,
        pytest.raises(httpx.ConnectError, match="certificate"),
    ):
        client.read_flows()


def test_compose_opens_ports_on_loopback_alone() -> None:
    services = yaml.safe_load(Path("deployments/compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
