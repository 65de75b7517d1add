"""A Prefect server with a credential: nothing answers without it, and a release works with it."""

import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from trainyard.process import free_port, port_in_use

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
def behind_nginx(
    server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """Prefect and another HTTP service behind `nginx.conf.template`, with a CA of our own."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    subject, san = ["-subj", "/CN=127.0.0.1"], ["-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-keyout", "tls.key", "-out", "tls.crt"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*make, *key, *subject, *san], cwd=folder, check=True, capture_output=True)
    secret = subprocess.run(["openssl", "passwd", "-apr1", "secret"], check=True, text=True,
                            capture_output=True).stdout  # fmt: skip
    (folder / "passwords").write_text(f"team:{secret}")
    prefect, mlflow = free_port(), free_port()
    upstream = server.removesuffix("/api")
    text = Path("deployments/nginx.conf.template").read_text()
    for name, value in {
        "TLS_CERTIFICATE": folder / "tls.crt", "TLS_KEY": folder / "tls.key",
        "PREFECT_LISTEN": f"127.0.0.1:{prefect}", "PREFECT_UPSTREAM": upstream,
        "MLFLOW_LISTEN": f"127.0.0.1:{mlflow}", "MLFLOW_UPSTREAM": upstream,
        "MLFLOW_PASSWORDS": folder / "passwords",
    }.items():  # fmt: skip
        text = text.replace(f"${{{name}}}", str(value))
    assert "${" not in text
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    around = f"user root; daemon off; pid {folder / 'pid'}; error_log {folder / 'error.log'};"
    (folder / "nginx.conf").write_text(
        f"{around} events {{}} http {{ access_log off; {temporary} {text} }}"
    )
    running = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    end = time.monotonic() + 120
    while not port_in_use(prefect):
        assert running.poll() is None, (folder / "error.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.2)
    yield f"https://127.0.0.1:{prefect}", f"https://127.0.0.1:{mlflow}", folder / "tls.crt"
    running.terminate()
    running.wait(30)


def test_behind_nginx_there_is_only_tls_and_only_with_a_credential(
    behind_nginx: tuple[str, str, Path],
) -> None:
    prefect, mlflow, ca = behind_nginx
    known = ssl.create_default_context(cafile=str(ca))
    name, password = CREDENTIAL.split(":")
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{prefect}/api/health", timeout=60)
    plain = prefect.replace("https", "http")
    assert httpx.get(f"{plain}/api/health", timeout=60).status_code == 400
    with httpx.Client(verify=known, timeout=60) as client:
        asked = f"{prefect}/api/flows/filter"
        assert client.post(asked, json={}).status_code == 401
        assert client.post(asked, json={}, auth=(name, password)).status_code == 200
        assert client.get(f"{mlflow}/api/health").status_code == 401
        assert client.get(f"{mlflow}/api/health", auth=("team", "wrong")).status_code == 401
        # past nginx: what answers now is the service behind it
        assert client.get(f"{mlflow}/api/health", auth=("team", "secret")).headers["server"]


def test_compose_opens_ports_on_loopback_alone() -> None:
    services = yaml.safe_load(Path("deployments/compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
