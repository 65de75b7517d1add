"""`make image`: the Dockerfile, built and started. It takes minutes, so only where asked for."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e import containers

BASE = "TRAINYARD_TEST_BASE_IMAGE"
EXTRAS = os.environ.get("TRAINYARD_TEST_EXTRAS", "docker kubernetes")


@pytest.fixture
def base(tmp_path: Path) -> str:
    asked = os.environ.get(BASE)
    if asked is None:
        pytest.skip(f"`make image` builds the Dockerfile; {BASE} may name an image with Python")
    containers.engine()
    return containers.debian(tmp_path) if asked == "debootstrap" else asked


@pytest.mark.timeout(3600)
def test_the_image_is_built_and_runs_as_nobody_in_particular(base: str) -> None:
    given = ("--build-arg", f"BASE={base}", "--build-arg", f"EXTRAS={EXTRAS}")
    docker("build", "--network", "host", "--target", "cpu", "--tag", "trainyard-test", *given, ".")
    assert "usage: trainyard" in docker("run", "--rm", "trainyard-test")
    planned = ("python", "-m", "trainyard", "plan", "recipes/quickstart.yaml")
    assert "can pass with" in docker("run", "--rm", "trainyard-test", *planned)
    assert docker("run", "--rm", "trainyard-test", "id", "-u").strip() == "10001"
    made = "import os; print(os.access('/run/lock/trainyard', os.W_OK))"
    assert docker("run", "--rm", "trainyard-test", "python", "-c", made).strip() == "True"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
