"""What is applied to a cluster, validated strictly and without one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.services.kubernetes.schemas import problems
from trainyard.errors import InputError
from trainyard.recipe.deploy import DeploySpec, Hpa, Keda, KubernetesTarget, S3Source, Toleration
from trainyard.rollout import manifest_pod, manifest_traffic, manifests
from trainyard.rollout.manifest_names import Manifest
from trainyard.rollout.target import ServedVersion

DIGEST = "sha256:" + "0" * 64
KEDA = Keda(prometheus="http://prometheus.monitoring:9090")
S3 = S3Source(url="s3://models", endpoint="http://minio:9000", secret="archive")
GPU: dict[str, Any] = {
    "gpus": 2,
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": (Toleration(key="nvidia.com/gpu"), Toleration(key="team", value="nlp")),
    "pull_secret": "registry",
    "arguments": ("--max-model-len", "8192"),
    "env": {"VLLM_LOGGING_LEVEL": "WARNING"},
}


def make(**target: Any) -> tuple[DeploySpec, KubernetesTarget]:
    given = {
        "namespace": "models-production",
        "image": f"registry.example/vllm@{DIGEST}",
        "gateway_image": f"registry.example/trainyard@{DIGEST}",
        "gateway": "gateways/public",
        "hostname": "tickets.example",
        "url": "https://tickets.example",
        "claim": "models",
        **target,
    }
    where = KubernetesTarget.model_validate(given)
    return DeploySpec(target=where, engine="vllm"), where


@pytest.fixture
def version(tmp_path: Path) -> ServedVersion:
    (tmp_path / "adapter_config.json").write_text('{"r": 16}')
    return ServedVersion(name="tickets", digest="ab" * 32, adapter=tmp_path, base=tmp_path)


def every(version: ServedVersion, **target: Any) -> dict[str, Manifest]:
    spec, where = make(mount=str(version.base), **target)
    found = manifests.objects(spec, where, version, "green", {"token": "t" * 16})
    found.append(manifest_traffic.route(where, "tickets", {"blue": 95, "green": 5}, "blue", 10))
    found.append(manifests.inference_service(spec, where, version))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}


@pytest.mark.parametrize(
    "target",
    [{}, {"scale": Hpa()}, {"scale": KEDA}, {"archive": S3}, GPU],
    ids=["plain", "hpa", "keda", "s3", "gpu"],
)
def test_every_object_is_valid(version: ServedVersion, target: dict[str, Any]) -> None:
    for name, found in every(version, **target).items():
        assert problems(found) == "", name
        assert found["metadata"]["namespace"] == "models-production"


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("Deployment/tickets-green", "spec.replcas", 1),
        ("Deployment/tickets-green", "spec.template.spec.containers.0.resources.gpu", 1),
        ("HTTPRoute/tickets", "spec.rules.2.backendRefs.0.weigth", 5),
        ("HTTPRoute/tickets", "spec.rules.2.backendRefs.0.weight", -1),
        ("ScaledObject/tickets-green", "spec.maxReplicas", 4),
        ("InferenceService/tickets", "spec.predictor.containers.0.imag", "x"),
    ],
)
def test_a_misspelt_object_is_found(
    version: ServedVersion, name: str, path: str, value: Any
) -> None:
    found = every(version, scale=KEDA)[name]
    *parents, last = path.split(".")
    place: Any = found
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    assert problems(found)


def test_a_gpu_is_asked_for_where_it_may_be_had(version: ServedVersion) -> None:
    pod = every(version, **GPU)["Deployment/tickets-green"]["spec"]["template"]["spec"]
    engine = pod["containers"][0]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert engine["args"][-2:] == ["--max-model-len", "8192"]
    assert engine["image"].endswith(DIGEST)
    assert pod["tolerations"][0] == {
        "key": "nvidia.com/gpu",
        "operator": "Exists",
        "effect": "NoSchedule",
    }
    assert pod["nodeSelector"] == GPU["node_selector"]


def test_no_secret_is_in_the_pods_environment(version: ServedVersion) -> None:
    found = every(version, archive=S3)
    pod = found["Deployment/tickets-green"]["spec"]["template"]["spec"]
    assert all("secretKeyRef" in one["valueFrom"] for one in pod["initContainers"][0]["env"])
    assert pod["automountServiceAccountToken"] is False
    assert "t" * 16 not in yaml.safe_dump(
        [one for name, one in found.items() if "Secret" not in name]
    )


def test_weights_and_shadow_are_the_routes(version: ServedVersion) -> None:
    found = every(version)["HTTPRoute/tickets"]
    assert manifest_traffic.split_of(found, "tickets") == {"blue": 95, "green": 5}
    assert manifest_traffic.champion_of(found, "tickets") == "blue"
    assert manifest_traffic.is_split(found)
    back = manifest_traffic.without_split(found)
    assert manifest_traffic.split_of(back, "tickets") == {"blue": 100, "green": 0}
    assert not manifest_traffic.is_split(back)
    assert problems(back) == ""


def test_weights_that_are_not_on_the_claim_are_refused(tmp_path: Path) -> None:
    spec, where = make()
    version = ServedVersion(name="m", digest="a" * 64, adapter=tmp_path, base=tmp_path)
    with pytest.raises(InputError, match=r"is not below /app/\.trainyard, where claim models"):
        manifest_pod.deployment(spec, where, version, "blue")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": "vllm/vllm-openai:v1"}, "image"),
        ({"shm_gib": 32}, r"shm_gib \(32\) must be below memory_gib"),
        ({"scale": {"kind": "hpa", "max_replicas": 1}, "replicas": 2}, "at least replicas"),
    ],
)
def test_a_target_that_cannot_work_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make(**change)
