"""On any cluster that KUBECONFIG names, in a namespace of its own that is deleted afterwards."""

import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.rollout.test_manifests import make
from trainyard.errors import InputError
from trainyard.rollout import manifest_traffic
from trainyard.rollout.kubernetes import Cluster
from trainyard.rollout.kubernetes_target import PodsTarget
from trainyard.rollout.target import ServedVersion

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="no cluster: KUBECONFIG is not set"),
]


@pytest.fixture
def namespace() -> Iterator[str]:
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    name = f"trainyard-test-{secrets.token_hex(3)}"
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": name}})
    core.create_namespaced_service_account(name, {"metadata": {"name": "trainyard-engine"}})
    yield name
    core.delete_namespace(name)


@pytest.fixture
def target(namespace: str, tmp_path: Path) -> PodsTarget:
    spec, _ = make(namespace=namespace, mount=str(tmp_path), memory_gib=0.25, shm_gib=0.1)
    return PodsTarget(spec, "m", tmp_path / "home", Cluster(namespace))


def test_a_slot_is_taken_and_its_missing_image_is_reported(
    target: PodsTarget, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    version = ServedVersion(name="m", digest="a" * 64, adapter=tmp_path, base=tmp_path)
    target.start(version, "blue")
    target.start(version, "blue")
    assert not target.ready("blue").ready
    found = target.engine("blue")
    assert found is not None
    assert found.version == version
    target.stop("blue")
    assert target.engine("blue") is None


def test_a_route_keeps_what_others_wrote(target: PodsTarget, namespace: str) -> None:
    cluster = Cluster(namespace)
    _, where = make(namespace=namespace)
    route = manifest_traffic.route(where, "m", {"blue": 100}, "blue")
    try:
        cluster.apply(route)
    except InputError as error:
        pytest.skip(f"no Gateway API in this cluster: {error}")
    found = cluster.get("HTTPRoute", "m")
    assert found is not None
    found["metadata"]["annotations"] = {"team.example/owner": "support"}
    cluster.replace(found)
    cluster.apply(manifest_traffic.route(where, "m", {"blue": 60, "green": 40}, "blue"))
    found = cluster.get("HTTPRoute", "m")
    assert found is not None
    assert found["metadata"]["annotations"]["team.example/owner"] == "support"
    assert manifest_traffic.split_of(found, "m") == {"blue": 60, "green": 40}


def test_a_lease_has_one_holder(namespace: str) -> None:
    from trainyard.errors import Refused
    from trainyard.rollout.kubernetes_lease import Lease, has_lapsed

    cluster = Cluster(namespace)
    lease = Lease(cluster, "m")
    lease.take(2, "one")
    with pytest.raises(Refused, match="rollout one of m is in progress"):
        lease.take(2, "two")
    assert lease.renew(1)
    time.sleep(2.5)
    found = cluster.get("Lease", "m-rollout")
    assert found is not None
    assert has_lapsed(found)
    lease.take(2, "two")
    lease.drop()
    assert cluster.get("Lease", "m-rollout") is None
