"""Each work pool's template, rendered by the worker that will use it."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import jsonschema
import kubernetes_validate
import pytest
import yaml
from docker import DockerClient
from docker.models.containers import _create_container_args
from docker.types import DeviceRequest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from deployments import pools
from deployments.pools import WorkPool

DIGEST = "sha256:" + "a" * 64
POOLS = {pool.name: pool for pool in pools.read_pools()}
NODES = Path("deployments/kubernetes/base/control/nodes.yaml")
_MISPLACED = ("completions", "parallelism")
KINDS: dict[str, type[BaseJobConfiguration]] = {
    "process": ProcessJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "kubernetes": KubernetesWorkerJobConfiguration,
}


@pytest.fixture(autouse=True)
def images(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_IMAGE", f"registry.example/trainyard@{DIGEST}")
    monkeypatch.setenv("TRAINYARD_GPU_IMAGE", f"registry.example/trainyard-gpu@{DIGEST}")


def render(pool: WorkPool, **variables: Any) -> Any:
    template = pool.base_job_template()
    found = asyncio.run(KINDS[pool.type].from_template_and_values(template, variables))
    found.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="a-run"))
    return found


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_renders_without_a_placeholder_left(name: str) -> None:
    assert "{{" not in (render(POOLS[name])).model_dump_json()


@pytest.mark.parametrize("name", [name for name, pool in POOLS.items() if pool.image])
def test_an_image_without_a_digest_is_refused(name: str) -> None:
    schema = POOLS[name].base_job_template()["variables"]
    jsonschema.validate({}, schema)
    with pytest.raises(jsonschema.ValidationError, match="does not match"):
        jsonschema.validate({"image": "trainyard:latest"}, schema)


@pytest.mark.parametrize("name", ["cpu-kubernetes", "gpu-kubernetes"])
def test_a_job_is_valid_and_closed(name: str) -> None:
    job = (render(POOLS[name])).job_manifest
    # the worker insists on these two of the Job in the pod; the API server drops them
    misplaced = {key: job["spec"]["template"]["spec"].pop(key) for key in _MISPLACED}
    assert misplaced == {"completions": 1, "parallelism": 1}
    kubernetes_validate.validate(job, "1.37", strict=True)
    assert job["spec"]["backoffLimit"] == 0
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["image"].endswith(DIGEST)
    assert container["envFrom"] == [{"secretRef": {"name": "trainyard-env"}}]
    assert {"name": "home", "mountPath": "/app/.trainyard"} in container["volumeMounts"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["PREFECT_HOME"] == "/tmp/prefect"


def test_a_gpu_job_asks_for_gpus_and_time_to_write_a_checkpoint() -> None:
    rendered = render(POOLS["gpu-kubernetes"], gpu_count=4, shm_size="64Gi")
    pod = rendered.job_manifest["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 4
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["volumes"][1]["emptyDir"]["sizeLimit"] == "64Gi"
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("nodes", [1, 2])
def test_nodes_are_pods_of_one_job_that_find_the_first_and_fail_together(nodes: int) -> None:
    job = render(POOLS["gpu-kubernetes"], gpu_count=8, nodes=nodes).job_manifest
    pod = job["spec"]["template"]["spec"]
    misplaced = {key: pod.pop(key) for key in _MISPLACED}
    assert misplaced == {"completions": 1, "parallelism": 1}  # of the pod, and dropped
    kubernetes_validate.validate(job, "1.37", strict=True)
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == (
        "Indexed", nodes, nodes,
    )  # fmt: skip
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert {rule["action"] for rule in spec["podFailurePolicy"]["rules"]} == {"FailJob"}
    service, policy = yaml.safe_load_all(NODES.read_text())
    for found in (service, policy):
        kubernetes_validate.validate(found, "1.37", strict=True)
    assert (service["spec"]["clusterIP"], service["metadata"]["name"]) == ("None", pod["subdomain"])
    marks = job["spec"]["template"]["metadata"]["labels"]
    for selector in (service["spec"]["selector"], policy["spec"]["podSelector"]["matchLabels"]):
        assert selector.items() <= marks.items()
    (container,) = pod["containers"]
    assert container["command"][-2:] == ["trainyard.training.nodes", f"--nodes={nodes}"]
    assert container["args"][:2] == ["prefect", "flow-run"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    names = [one["name"] for one in container["env"]]
    assert names[-3:] == ["JOB_NAME", "MASTER_ADDR", "MASTER_PORT"]  # in the order of their use
    assert container["env"][-2]["value"] == "$(JOB_NAME)-0.trainyard-nodes"
    assert "PREFECT_HOME" in names
    # the pod's hostname, <job>-<index>, is a label: of at most 63 characters
    assert len(job["metadata"]["generateName"]) + 5 + len("-63") <= 63


def test_a_docker_job_gets_its_device_and_nothing_else() -> None:
    rendered = render(POOLS["gpu-docker"], gpus=["3"])
    worker = DockerWorker(work_pool_name="gpu-docker")
    engine = SimpleNamespace(version=lambda: {"Version": "28.0.0"})
    settings = worker._build_container_settings(cast(DockerClient, engine), rendered)
    sent = _create_container_args({**settings, "version": "1.43"})["host_config"]
    assert sent["DeviceRequests"] == [
        DeviceRequest(driver="nvidia", device_ids=["3"], capabilities=[["gpu"]])
    ]
    assert sent["ShmSize"] == 16 << 30
    assert sent["SecurityOpt"] == ["no-new-privileges"]
    assert not sent.get("Privileged")
    assert rendered.env["PREFECT_HOME"] == "/tmp/prefect"


@pytest.mark.parametrize("name", ["cpu-docker", "gpu-docker"])
def test_a_run_cannot_drop_the_limits(name: str) -> None:
    rendered = render(POOLS[name], container_create_kwargs={}, privileged=True)
    assert rendered.container_create_kwargs["security_opt"] == ["no-new-privileges"]
    assert rendered.privileged is False


def test_the_environment_names_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_NAMESPACE", "trainyard-staging")
    job = render(POOLS["cpu-kubernetes"]).job_manifest
    assert job["metadata"]["namespace"] == "trainyard-staging"


def test_no_gpu_at_all_is_refused() -> None:
    schema = POOLS["gpu-docker"].base_job_template()["variables"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"gpus": []}, schema)


def test_no_template_holds_a_secret() -> None:
    for pool in POOLS.values():
        said = json.dumps(pool.base_job_template()).lower()
        assert "prefect.blocks.secret" not in said, "a block is readable by every API caller"


def test_a_pool_without_its_image_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINYARD_IMAGE")
    assert "set TRAINYARD_IMAGE to an image by digest" in str(POOLS["cpu-docker"].missing())
    monkeypatch.setenv("TRAINYARD_IMAGE", "trainyard:latest")
    assert POOLS["cpu-docker"].missing() is not None
    assert POOLS["cpu"].missing() is None


def test_pools_applied_twice_are_the_same(
    prefect_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def found() -> list[Any]:
        with get_client(sync_client=True) as client:
            read = [client.read_work_pool(name) for name in POOLS]
        return [(p.type, p.concurrency_limit, p.base_job_template) for p in read]

    pools.apply(list(POOLS.values()))
    before = found()
    pools.apply(list(POOLS.values()))
    assert found() == before
    assert capsys.readouterr().out.count("updated") >= len(POOLS)
