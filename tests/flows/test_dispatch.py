import asyncio
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from deployments import pools
from tasks import dispatch
from tasks.server import server
from tests.flows import declared
from trainyard.errors import InputError, Unavailable
from trainyard.recipe.resources import ResourcesSpec


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
        assert declared.on_server(client) == declared.in_file()
    release = next(d for d in found if (d.name, d.tags) == ("quickstart", ["release"]))
    assert release.parameters["environment"] == "team"
    assert {"recipe", "overrides", "environment", "dry_run"} == set(
        release.parameter_openapi_schema["properties"]
    )
    assert gpu.concurrency_limit == 1
    assert look.enabled


@pytest.mark.usefixtures("deployed")
def test_an_event_about_a_model_makes_one_look_at_it() -> None:
    def post(model: str) -> None:
        event = {
            "event": "trainyard.look",
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {"prefect.resource.id": f"trainyard.model.{model}"},
        }
        httpx.post(f"{PREFECT_API_URL.value()}/events", json=[event]).raise_for_status()

    with get_client(sync_client=True) as client:
        monitor = client.read_deployment_by_name("monitor/quickstart")
        mine = DeploymentFilter(id=DeploymentFilterId(any_=[monitor.id]))

        def looks() -> list[FlowRun]:
            every = client.read_flow_runs(deployment_filter=mine)
            return [run for run in every if run.created_by and run.created_by.type == "AUTOMATION"]

        assert looks() == []
        post("another")
        post("quickstart")
        end = time.monotonic() + 120
        while not looks():
            assert time.monotonic() < end, "no look was made"
            time.sleep(0.2)
        (look,) = looks()
        client.delete_flow_run(look.id)
    assert look.created_by.display_value == "look-at-quickstart"
    assert look.parameters["recipe"] == "recipes/quickstart.yaml"


@pytest.mark.usefixtures("deployed")
def test_a_pool_without_a_worker_is_named_instead_of_waiting_for_ever() -> None:
    @flow
    def parent() -> None:
        dispatch.run("training/gpu", {}, "train")

    begin = time.monotonic()
    with pytest.raises(Unavailable, match="work pool gpu of training/gpu is not_ready"):
        parent()
    assert time.monotonic() - begin < 60


def test_a_pool_that_was_deleted_is_named_instead_of_waiting_for_ever(
    prefect_server: None,
) -> None:
    (pool,) = (pool for pool in pools.read_pools() if pool.name == "cpu")
    pools.apply([pool.model_copy(update={"name": "gone"})])
    with server() as prefect:
        made = prefect.ask(lambda client: client.create_flow_from_name("gone"))
        prefect.ask(lambda client: client.create_deployment(made, "gone", work_pool_name="gone"))
        prefect.ask(lambda client: client.delete_work_pool("gone"))

    @flow
    def parent() -> None:
        dispatch.run("gone/gone", {}, "train")

    with pytest.raises(InputError, match="the work pool of gone/gone is not there any more"):
        parent()


def test_nodes_and_gpus_reach_the_job_of_a_kubernetes_pool(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_GPU_IMAGE", f"registry.example/gpu@sha256:{'a' * 64}")
    (pool,) = (pool for pool in pools.read_pools() if pool.name == "gpu-kubernetes")
    pools.apply([pool])
    need = ResourcesSpec(gpus=8, nodes=2)
    with server() as prefect:
        made = prefect.ask(lambda client: client.create_flow_from_name("nodes"))
        prefect.ask(lambda client: client.create_deployment(made, "two", work_pool_name=pool.name))
        variables = prefect.ask(lambda client: dispatch._job_variables(client, pool.name, need))
        run = dispatch._start(prefect, "nodes/two", {}, variables, tags=[], key="once")
    template = pool.base_job_template()
    sent = KubernetesWorkerJobConfiguration.from_template_and_values(template, run.job_variables)
    job = asyncio.run(sent).job_manifest
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == 8


@pytest.mark.usefixtures("deployed")
def test_several_machines_of_a_pool_that_has_one_are_refused() -> None:
    two = ResourcesSpec(gpus=1, nodes=2)
    with (
        server() as prefect,
        pytest.raises(InputError, match="nodes is 2 and work pool gpu is of type process: only a"),
    ):
        prefect.ask(lambda client: dispatch._job_variables(client, "gpu", two))


@pytest.mark.usefixtures("prefect_server")
def test_a_deployment_that_is_not_there_is_named() -> None:
    @flow
    def parent() -> None:
        dispatch.run("training/nowhere", {}, "train")

    with pytest.raises(InputError, match="no deployment training/nowhere"):
        parent()
