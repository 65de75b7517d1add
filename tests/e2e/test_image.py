"""The Dockerfile, built and started: several GB and many minutes, so only where it is asked for."""

import os
import subprocess

import pytest

from tests.e2e import containers

BASE = "TRAINYARD_TEST_BASE_IMAGE"
EXTRAS = os.environ.get("TRAINYARD_TEST_EXTRAS", "docker kubernetes")


@pytest.mark.timeout(3600)
def test_the_image_is_built_and_runs_as_nobody_in_particular() -> None:
    if BASE not in os.environ:
        pytest.skip(f"set {BASE} to an image with Python 3.11 to 3.13 to build the Dockerfile")
    containers.engine()
    given = ("--build-arg", f"BASE={os.environ[BASE]}", "--build-arg", f"EXTRAS={EXTRAS}")
    docker("build", "--network", "host", "--target", "cpu", "--tag", "trainyard-test", *given, ".")
    assert "usage: trainyard" in docker("run", "--rm", "trainyard-test")
    assert docker("run", "--rm", "trainyard-test", "id", "-u").strip() == "10001"
    made = "import os; print(os.access('/run/lock/trainyard', os.W_OK))"
    assert docker("run", "--rm", "trainyard-test", "python", "-c", made).strip() == "True"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
