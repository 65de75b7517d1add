"""Rollouts in a cluster: the real client, engines and gateways as processes, our own API server."""

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.services.kubernetes.conftest import NAMESPACE, FakeCluster, running
from tests.services.rollout.stubs import QUICK, REPLAY, USER, ask, until, version
from trainyard import rollout
from trainyard.errors import InputError, NotFound, Refused, Unavailable
from trainyard.recipe.deploy import DeploySpec, Hpa, KubernetesTarget
from trainyard.rollout import manifest_names, manifest_traffic
from trainyard.rollout.kubernetes import Cluster
from trainyard.rollout.kubernetes_lease import Lease, guard
from trainyard.rollout.kubernetes_target import PodsTarget
from trainyard.rollout.state import Store
from trainyard.rollout.target import ServedVersion, Terms

DIGEST = "sha256:" + "0" * 64


def make_spec(mount: str, url: str, **target: Any) -> DeploySpec:
    where = KubernetesTarget(
        namespace=NAMESPACE,
        image=f"engine@{DIGEST}",
        gateway_image=f"trainyard@{DIGEST}",
        gateway="gateways/public",
        hostname="m.example",
        url=url,
        claim="models",
        mount=mount,
        **target,
    )
    return DeploySpec(
        target=where, engine="vllm", strategy=QUICK, soak_s=0.5, lease_s=2, ready_timeout_s=20
    )


@pytest.fixture
def spec(cluster: FakeCluster, tmp_path: Path) -> DeploySpec:
    return make_spec(str(tmp_path), cluster.url)


@pytest.fixture
def target(cluster: FakeCluster, spec: DeploySpec, tmp_path: Path) -> Iterator[PodsTarget]:
    found = rollout.open_target(spec, "m", tmp_path / "home")
    assert isinstance(found, PodsTarget)
    yield found
    found.down()
    assert [key for key in cluster.api.objects if key[0] in ("deployments", "secrets")] == []


@pytest.fixture
def champion(target: PodsTarget, spec: DeploySpec, tmp_path: Path) -> ServedVersion:
    served = version(tmp_path, "aaaaaaaa")
    done = rollout.run(target, served, spec=spec)
    assert done.promoted, done.state.reason
    return served


class Steady(NamedTuple):
    """A cluster with a champion, for tests that leave it as it was."""

    cluster: FakeCluster
    target: PodsTarget
    spec: DeploySpec
    champion: ServedVersion
    place: Path

    @property
    def where(self) -> KubernetesTarget:
        assert isinstance(self.spec.target, KubernetesTarget)
        return self.spec.target


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steady]:
    place = tmp_path_factory.mktemp("steady")
    with running(place) as cluster:
        spec = make_spec(str(place), cluster.url)
        target = rollout.open_target(spec, "m", place / "home")
        assert isinstance(target, PodsTarget)
        served = version(place, "aaaaaaaa")
        assert rollout.run(target, served, spec=spec).promoted
        yield Steady(cluster, target, spec, served, place)
        target.down()


@pytest.fixture
def green(steady: Steady) -> Iterator[ServedVersion]:
    """A second version, ready and without traffic."""
    served = version(steady.place, secrets.token_hex(4))
    steady.target.start(served, "green")
    until(lambda: steady.target.ready("green").ready)
    yield served
    steady.target.set_weights({"blue": 100}, "blue")
    steady.target.stop("green")


def serving(target: PodsTarget) -> set[str]:
    return {ask(target).headers["x-trainyard-version"] for _ in range(12)}


def names(cluster: FakeCluster, plural: str) -> list[str]:
    return sorted(name for kind, _, name in cluster.api.objects if kind == plural)


def test_a_good_second_version_is_promoted_and_the_first_removed(
    cluster: FakeCluster,
    target: PodsTarget,
    spec: DeploySpec,
    champion: ServedVersion,
    tmp_path: Path,
) -> None:
    assert serving(target) == {champion.digest}
    done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=spec, replay=REPLAY)
    assert [r.step for r in done.state.done] == ["start", "20 %", "50 %", "100 %", "soak"]
    assert done.promoted, done.state.reason
    assert done.state.done[1].canary.requests >= QUICK.min_requests
    assert serving(target) == {"bbbbbbbb" * 8}
    assert names(cluster, "deployments") == ["m-green"]
    assert names(cluster, "leases") == [], "no split, no lease"


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"fail": 0.7}, "failed|in a row|answers 500|got 500"),
        ({"crash_after": 6}, "crashed and restarted|not ready|in a row"),
    ],
    ids=["errors", "crash"],
)
def test_a_bad_version_is_aborted_and_users_never_notice(
    cluster: FakeCluster,
    target: PodsTarget,
    spec: DeploySpec,
    champion: ServedVersion,
    tmp_path: Path,
    behaviour: dict[str, Any],
    says: str,
) -> None:
    done = rollout.run(target, version(tmp_path, "cccccccc", **behaviour), spec=spec, replay=REPLAY)
    assert done.state.phase == "aborted"
    assert any(part in done.state.reason for part in says.split("|")), done.state.reason
    assert serving(target) == {champion.digest}
    assert names(cluster, "deployments") == ["m-blue"]


def test_weights_reach_the_gateway_and_foreign_fields_stay(
    steady: Steady, green: ServedVersion
) -> None:
    cluster, target = steady.cluster, steady.target
    path = ("httproutes", NAMESPACE, "m")
    theirs = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "m", "annotations": {"team.example/owner": "support"}},
    }
    cluster.apply(theirs, "somebody-else")
    target.set_weights({"blue": 70, "green": 30}, "blue", Terms(5, salt="one"))
    seen = [ask(target).headers["x-trainyard-version"] for _ in range(120)]
    # 36 expected, five standard deviations allowed
    assert 11 <= seen.count(green.digest) <= 61
    found = cluster.api.objects[path]
    assert found["metadata"]["annotations"] == {"team.example/owner": "support"}
    assert [b["weight"] for b in found["spec"]["rules"][-1]["backendRefs"]] == [7000, 3000]


def test_a_route_that_somebody_took_over_is_refused_and_named(steady: Steady) -> None:
    cluster, target = steady.cluster, steady.target
    path = ("httproutes", NAMESPACE, "m")
    found = cluster.api.objects[path]
    theirs = {k: found[k] for k in ("apiVersion", "kind")}
    theirs |= {"metadata": {"name": "m"}, "spec": {"hostnames": ["other.example"]}}
    cluster.apply(theirs, "an-operator", force=True)
    with pytest.raises(Refused, match=r'conflict with "an-operator": \.spec\.hostnames'):
        target.set_weights({"blue": 100}, "blue")
    ours = manifest_traffic.route(steady.where, "m", {"blue": 100}, "blue")
    cluster.apply(ours, manifest_names.MANAGER, force=True)


def test_a_slot_without_ready_replicas_gets_no_traffic(steady: Steady) -> None:
    target = steady.target
    target.start(version(steady.place, "dddddddd", never_ready=True), "green")
    until(lambda: target.engine("green") is not None)
    assert not target.ready("green").ready
    target.set_weights({"blue": 95, "green": 5}, "blue", Terms(5, salt="one"))
    route = steady.cluster.api.objects["httproutes", NAMESPACE, "m"]
    assert manifest_traffic.split_of(route, "m") == {"blue": 100, "green": 0}
    assert not target.renew(5), "asked for again at the next look"
    target.set_weights({"blue": 100}, "blue")
    target.stop("green")


def test_a_gateway_that_refuses_the_route_is_reported(
    steady: Steady, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, target = steady.cluster, steady.target
    monkeypatch.setattr("trainyard.rollout.kubernetes_target._ROUTE_S", 0.6)
    cluster.gateway.refuses = "no listener for m.example"
    with pytest.raises(Unavailable, match="Accepted is False: no listener for m"):
        target.set_weights({"blue": 100, "green": 0}, "blue")
    cluster.gateway.refuses = ""
    target.set_weights({"blue": 100}, "blue")


def test_two_replicas_are_both_verified_and_both_read(cluster: FakeCluster, tmp_path: Path) -> None:
    spec = make_spec(str(tmp_path), cluster.url, replicas=2)
    target = rollout.open_target(spec, "m", tmp_path / "home")
    try:
        assert rollout.run(target, version(tmp_path, "aaaaaaaa"), spec=spec).promoted
        for n in range(20):
            USER.post(
                f"{target.endpoint()}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "hi"}]},
                headers={"x-request-id": f"r{n}"},
            )
        first = target.observe(0)
        assert {r["request_id"] for r in first.records} == {f"r{n}" for n in range(20)}
        assert target.observe(first.next).records == ()
        again = rollout.open_target(spec, "m", tmp_path / "home").observe(0)
        assert len(again.records) == 20, "a killed controller reads the same again"
        (pods,) = cluster.nodes.pods.values()
        counts = [
            httpx.get(f"http://127.0.0.1:{pod.ports['engine']}/seen").json()["requests"]
            for pod in pods
        ]
        assert len(counts) == 2
        assert min(counts) >= 2, "a probe and some users"
    finally:
        target.down()


def test_a_quota_ends_the_wait_and_an_autoscaler_owns_the_replicas(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    spec = make_spec(str(tmp_path), cluster.url, scale=Hpa())
    cluster.nodes.quota = "exceeded quota: requests.nvidia.com/gpu=1, used: 8, limited: 8"
    target = rollout.open_target(spec, "m", tmp_path / "home")
    target.start(version(tmp_path, "aaaaaaaa"), "blue")
    assert names(cluster, "horizontalpodautoscalers") == ["m-blue"]
    assert "replicas" not in cluster.api.objects["deployments", NAMESPACE, "m-blue"]["spec"]
    until(lambda: not target.ready("blue").alive)
    assert "exceeded quota" in target.ready("blue").why
    target.down()


def test_faults_of_the_api_server_are_ridden_out(steady: Steady) -> None:
    cluster, target = steady.cluster, steady.target
    cluster.api.faults += [("PATCH", "httproutes", 500), ("PATCH", "httproutes", 503)]
    target.set_weights({"blue": 100}, "blue")
    cluster.api.faults += [("PATCH", "httproutes", 500)] * 4
    with pytest.raises(
        Unavailable, match="the cluster could not PATCH HTTPRoute models-dev/m: 500"
    ):
        target.set_weights({"blue": 100}, "blue")


def test_two_controllers_never_hold_one_rollout(steady: Steady, green: ServedVersion) -> None:
    target = steady.target
    split = {"blue": 80.0, "green": 20.0}
    target.set_weights(split, "blue", Terms(5, salt="mine"))
    with pytest.raises(Refused, match="rollout mine of m is in progress in namespace models-dev"):
        target.set_weights(split, "blue", Terms(5, salt="another"))
    assert target.renew(5)
    target.set_weights({"blue": 100}, "blue")
    assert not target.renew(5), "no split, no lease"


CONTROLLER = """
import sys
from pathlib import Path
from tests.services.rollout.stubs import QUICK, REPLAY
from trainyard import rollout
from trainyard.recipe.deploy import DeploySpec
from trainyard.rollout.target import ServedVersion
home, version, spec = sys.argv[1:]
spec = DeploySpec.model_validate_json(spec)
strategy = QUICK.model_copy(update={"min_requests": 5000, "requests": 5000})
spec = spec.model_copy(update={"strategy": strategy})
target = rollout.open_target(spec, "m", Path(home))
rollout.run(target, ServedVersion.model_validate_json(version), spec=spec, replay=REPLAY)
"""


def test_a_killed_controller_leaves_the_champion_and_can_be_taken_up(
    target: PodsTarget, spec: DeploySpec, champion: ServedVersion, tmp_path: Path
) -> None:
    candidate = version(tmp_path, "bbbbbbbb")
    home = tmp_path / "home"
    given = [str(home), candidate.model_dump_json(), spec.model_dump_json()]
    child = subprocess.Popen([sys.executable, "-c", CONTROLLER, *given])
    try:
        until(lambda: (target.folder / "looks.jsonl").exists(), 60)
        watching = Cluster(NAMESPACE)
        assert guard(watching) == [], "a rollout that speaks is left alone"
    finally:
        child.kill()
        child.wait()
    until(lambda: guard(watching) == ["m"], spec.lease_s + 5)
    watching.close()
    assert serving(target) == {champion.digest}
    again = rollout.begin(target, candidate, spec=spec, replay=REPLAY)
    assert again.next_step == "20 %", "the finished start is not repeated"
    while again.next_step:
        again.step()
    assert again.promoted, again.state.reason
    assert serving(target) == {candidate.digest}


def test_rollback_in_the_soak_is_one_weight_change(
    target: PodsTarget, spec: DeploySpec, champion: ServedVersion, tmp_path: Path
) -> None:
    from trainyard.recipe.deploy import AllAtOnce

    spec = spec.model_copy(update={"soak_s": 30.0, "strategy": AllAtOnce()})
    rolling = rollout.begin(target, version(tmp_path, "bbbbbbbb"), spec=spec)
    rolling.step()
    rolling.step()
    assert serving(target) == {"bbbbbbbb" * 8}
    found = rollout.rollback(target, "a person said so")
    assert found.warm
    assert serving(target) == {champion.digest}
    assert rolling.step().decision == "roll_back"
    assert target.engine("green") is None


def test_a_shadow_is_mirrored_by_the_gateway_and_seen_by_nobody(
    target: PodsTarget, spec: DeploySpec, champion: ServedVersion, tmp_path: Path
) -> None:
    strategy = QUICK.model_copy(update={"shadow_pct": 100.0, "replay": False})
    spec = spec.model_copy(update={"strategy": strategy})
    seen: set[str] = set()
    stop = threading.Event()

    def user() -> None:
        while not stop.wait(0.05):
            seen.add(ask(target).headers["x-trainyard-version"])

    thread = threading.Thread(target=user)
    thread.start()
    try:
        done = rollout.run(target, version(tmp_path, "cccccccc", answer=""), spec=spec)
    finally:
        stop.set()
        thread.join()
    assert [r.step for r in done.state.done] == ["start", "shadow"]
    assert "in a row" in done.state.reason
    assert seen == {champion.digest}


def test_a_watch_sees_the_weights_change(steady: Steady) -> None:
    cluster, target = steady.cluster, steady.target
    from kubernetes import client, config, watch

    config.load_kube_config(os.environ["KUBECONFIG"])
    listed = cluster.api.objects["httproutes", NAMESPACE, "m"]["metadata"]["resourceVersion"]
    target.set_weights({"blue": 100, "green": 0}, "blue")
    api = client.ApiClient()
    events = watch.Watch().stream(
        client.CustomObjectsApi(api).list_namespaced_custom_object,
        *("gateway.networking.k8s.io", "v1", NAMESPACE, "httproutes"),
        resource_version=listed,
        timeout_seconds=10,
    )
    first = next(events)
    assert first["type"] == "MODIFIED"
    assert len(first["object"]["spec"]["rules"][-1]["backendRefs"]) == 2
    events.close()
    api.close()
    target.set_weights({"blue": 100}, "blue")


def test_what_a_cluster_refuses_is_one_sentence(
    steady: Steady, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Cluster("no-such-namespace")
    route = manifest_traffic.route(steady.where, "m", {"blue": 100}, "blue")
    with pytest.raises(InputError, match='namespaces "no-such-namespace" not found'):
        where.apply(route)
    where.close()
    found = Cluster(NAMESPACE)
    route["spec"]["rules"][-1]["backendRefs"][0]["weigth"] = 1
    with pytest.raises(InputError, match="weigth"):
        found.apply(route)
    found.close()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no cluster to deploy to"):
        Cluster(NAMESPACE)


def test_nothing_deployed_has_no_endpoint(target: PodsTarget) -> None:
    with pytest.raises(NotFound, match="no HTTPRoute serves m in models-dev"):
        target.endpoint()
    assert Store(target.folder).state() is None
    assert Lease(target._cluster, "m").renew(1) is False
