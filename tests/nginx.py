"""nginx as `nginx.conf.template` sets it up, with certificates of a small CA of our own."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from trainyard.process import free_port, port_in_use

USER, PASSWORD = "team", "word-of-the-team"
"""What nginx asks for before MLflow."""


class Front(NamedTuple):
    prefect: str
    mlflow: str
    ca: Path
    """The root's certificate: all that a client has to know."""


@contextmanager
def in_front(folder: Path, *, prefect: str, mlflow: str) -> Iterator[Front]:
    """Serve both upstreams on loopback ports; skips, with the reason, without nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    _certificates(folder)
    hashed = _openssl(folder, "passwd", "-apr1", PASSWORD)
    (folder / "passwords").write_text(f"{USER}:{hashed}")
    ports = free_port(), free_port()
    text = Path("deployments/nginx.conf.template").read_text()
    for name, value in {
        "TLS_CERTIFICATE": folder / "tls.crt", "TLS_KEY": folder / "tls.key",
        "PREFECT_LISTEN": f"127.0.0.1:{ports[0]}", "PREFECT_UPSTREAM": prefect,
        "MLFLOW_LISTEN": f"127.0.0.1:{ports[1]}", "MLFLOW_UPSTREAM": mlflow,
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
    try:
        end = time.monotonic() + 120
        while not all(map(port_in_use, ports)):
            assert running.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield Front(*(f"https://127.0.0.1:{port}" for port in ports), folder / "ca.crt")
    finally:
        running.terminate()
        running.wait(30)


def _certificates(folder: Path) -> None:
    """A root, an issuer that it signed, and the server's, which nginx sends with the issuer's."""
    (folder / "issuer.ext").write_text("basicConstraints=critical,CA:TRUE,pathlen:0\n")
    (folder / "tls.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    _openssl(folder, *new, "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt",
             "-subj", "/CN=our CA")  # fmt: skip
    for name, signer in (("issuer", "ca"), ("tls", "issuer")):
        _openssl(folder, *new, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                 "-subj", f"/CN={name}")  # fmt: skip
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{signer}.crt",
                 "-CAkey", f"{signer}.key", "-CAcreateserial", "-days", "2",
                 "-out", f"{name}.crt", "-extfile", f"{name}.ext")  # fmt: skip
    with (folder / "tls.crt").open("a") as chain:
        chain.write((folder / "issuer.crt").read_text())


def _openssl(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["openssl", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
