import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from deployments import pools
from tasks import dispatch
from trainyard.errors import InputError, Unavailable


@pytest.fixture(scope="module")
def deployed(prefect_server: None) -> None:
    """Pools and every deployment of prefect.yaml on the server, without a prompt."""
    pools.apply(pools.read_pools())
    env = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        "TRAINYARD_ROOT": os.getcwd(),  # noqa: PTH109
        "TRAINYARD_ENVIRONMENT": "team",
    }
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("deployed")
def test_every_deployment_reaches_the_server_and_twice_changes_nothing() -> None:
    pools.apply(pools.read_pools())
    with get_client(sync_client=True) as client:
        found = client.read_deployments()
        gpu = client.read_work_pool("gpu")
        (look,) = client.read_automations_by_name("look-at-quickstart")
    declared = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    assert sorted(d.name for d in found) == sorted(d["name"] for d in declared)
    release = next(d for d in found if (d.name, d.tags) == ("quickstart", ["release"]))
    assert release.parameters["environment"] == "team"
    assert {"recipe", "overrides", "environment", "dry_run"} == set(
        release.parameter_openapi_schema["properties"]
    )
    assert gpu.concurrency_limit == 1
    assert look.enabled


@pytest.mark.usefixtures("deployed")
def test_a_pool_without_a_worker_is_named_instead_of_waiting_for_ever() -> None:
    @flow
    def parent() -> None:
        dispatch.run("training/gpu", {}, "train")

    with pytest.raises(Unavailable, match="work pool gpu of training/gpu is not_ready"):
        parent()


@pytest.mark.usefixtures("prefect_server")
def test_a_deployment_that_is_not_there_is_named() -> None:
    @flow
    def parent() -> None:
        dispatch.run("training/nowhere", {}, "train")

    with pytest.raises(InputError, match="no deployment training/nowhere"):
        parent()
