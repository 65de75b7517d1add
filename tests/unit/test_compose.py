"""deployments/compose.yaml, as far as it can be read without an engine: what it names is there."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PATH = Path("deployments/compose.yaml")
TEXT = PATH.read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]


def test_every_part_is_there() -> None:
    parts = {"postgres", "server", "gateway", "worker", "s3", "mlflow", "exporter", "prometheus"}
    assert parts <= set(SERVICES)


def test_compose_itself_takes_the_file(tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    values = dict.fromkeys(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT), "admin:x")
    # version 1, which Debian has, does not know a project's name yet
    file = tmp_path / "compose.yaml"
    file.write_text(re.sub(r"(?m)^name: .*$", "", TEXT))
    command = ["docker-compose", "-f", str(file), "config"]
    env = {"PATH": "/usr/bin:/bin", **values}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False)
    assert done.returncode != 0, "a password that nobody wrote"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_declared(name: str) -> None:
    service = SERVICES[name]
    for other, wanted in service.get("depends_on", {}).items():
        assert other in SERVICES
        if wanted["condition"] == "service_healthy":
            has_check = "healthcheck" in SERVICES[other]
            assert has_check or "HEALTH_URL" in SERVICES[other]["environment"], other
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        known = (PATH.parent / source).exists() if source.startswith(".") else True
        assert known, source
        assert source.startswith(".") or source in FILE["volumes"]
    mode = service.get("network_mode", "service:server")
    assert mode.removeprefix("service:") in SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_answers_beyond_loopback(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_secrets_are_asked_for_and_never_written() -> None:
    example = (PATH.parent / "compose.env.example").read_text()
    for secret in ("POSTGRES_PASSWORD", "PREFECT_AUTH", "S3_ACCESS_KEY", "S3_SECRET_KEY"):
        assert f"${{{secret}:?" in TEXT, f"{secret} has a default, or is not asked for"
        assert re.search(rf"^{secret}=(admin:)?$", example, re.MULTILINE)
    named = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT))
    assert named == set(re.findall(r"^#?([A-Z0-9_]+)=", example, re.MULTILINE))


def test_the_image_has_no_secret_and_no_root() -> None:
    lines = Path("Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"] * 2
    assert not [line for line in lines if re.search(r"(?i)(password|token|api_key)=", line)]
    assert Path(".dockerignore").read_text().splitlines()[0] == "*"
