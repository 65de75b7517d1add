"""The Docker target against a real Docker engine (`DOCKER_HOST`), with containers made here."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from docker.errors import DockerException

from tests.services.rollout import stub_image
from trainyard import rollout
from trainyard.errors import InputError, Unavailable
from trainyard.recipe.deploy import Canary, DeploySpec, DockerTarget
from trainyard.rollout.docker import DockerEngines, Plan
from trainyard.rollout.gateway_target import GatewayTarget, serving_folder
from trainyard.rollout.target import ServedVersion

WHERE = DockerTarget(shm_gib=0.0625, env={"TOLD": "hello"})
QUICK = Canary(steps=(50,), min_requests=8, requests=12, margin=0.1, look_s=0.5)
SPEC = DeploySpec(
    target=WHERE, engine="vllm", port=0, strategy=QUICK, soak_s=0.5, lease_s=5, ready_timeout_s=30
)
REPLAY = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(20)]


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        pytest.skip("no Docker engine: DOCKER_HOST is not set and there is no /var/run/docker.sock")
    try:
        found = docker.from_env()
        found.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    if not stub_image.PYTHON.exists():
        pytest.skip(f"{stub_image.PYTHON} is needed to build the image of the stub engine")
    stub_image.build(found)
    yield found
    found.close()


def plan(version: ServedVersion) -> Plan:
    return Plan(
        image=stub_image.TAG, entrypoint=None, command=[version.model], env={}, health="/health"
    )


def make(home: Path, spec: DeploySpec = SPEC) -> GatewayTarget:
    folder = serving_folder(home, "m")
    assert isinstance(spec.target, DockerTarget)
    return GatewayTarget(spec, "m", home, DockerEngines(spec.target, folder, plan))


@pytest.fixture
def target(client: docker.DockerClient, tmp_path: Path) -> Iterator[GatewayTarget]:
    found = make(tmp_path / "home")
    yield found
    found.down()
    left = client.containers.list(all=True, filters={"name": "trainyard-m-"})
    assert [container.name for container in left] == []


def version(folder: Path, digest: str, **behaviour: Any) -> ServedVersion:
    adapter = folder / digest
    adapter.mkdir()
    (adapter / "behaviour.json").write_text(json.dumps(behaviour))
    return ServedVersion(name="m", digest=digest * 8, adapter=adapter, base=folder)


@pytest.fixture
def champion(target: GatewayTarget, tmp_path: Path) -> ServedVersion:
    served = version(tmp_path, "aaaaaaaa")
    done = rollout.run(target, served, spec=SPEC)
    assert done.promoted, done.state.reason
    return served


def serving(target: GatewayTarget) -> str:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    found = httpx.post(f"{target.endpoint()}/v1/chat/completions", json=body)
    assert found.status_code == 200, found.text
    return found.headers["x-trainyard-version"]


def test_a_container_is_closed_labelled_and_read_only(
    client: docker.DockerClient, target: GatewayTarget, champion: ServedVersion
) -> None:
    (container,) = client.containers.list(filters={"label": "trainyard.slot=blue"})
    host = container.attrs["HostConfig"]
    assert container.labels["trainyard.version"] == champion.digest
    assert [b["HostIp"] for b in host["PortBindings"]["8000/tcp"]] == ["127.0.0.1"]
    assert {mount["RW"] for mount in container.attrs["Mounts"]} == {False}
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ShmSize"] == 64 << 20
    assert "TOLD=hello" in container.attrs["Config"]["Env"]
    assert "8000/health" in container.attrs["Config"]["Healthcheck"]["Test"][-1]


def test_a_good_second_version_is_promoted_and_the_first_container_removed(
    client: docker.DockerClient, target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    done = rollout.run(target, version(tmp_path, "bbbbbbbb"), spec=SPEC, replay=REPLAY)
    assert done.promoted, done.state.reason
    assert serving(target) == "bbbbbbbb" * 8
    slots = [c.labels["trainyard.slot"] for c in client.containers.list(all=True) if c.labels]
    assert slots == ["green"]


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"dies_at_start": True}, "the adapter does not fit the base"),
        ({"crash_after": 4}, "crashed and restarted|a kernel died|not ready|in a row"),
        ({"answer": ""}, "in a row"),
    ],
    ids=["dies at start", "crashes", "empty answers"],
)
def test_a_bad_version_is_sent_back_and_its_container_removed(
    client: docker.DockerClient,
    target: GatewayTarget,
    champion: ServedVersion,
    tmp_path: Path,
    behaviour: dict[str, Any],
    says: str,
) -> None:
    done = rollout.run(target, version(tmp_path, "cccccccc", **behaviour), spec=SPEC, replay=REPLAY)
    assert done.state.phase == "aborted"
    assert any(part in done.state.reason for part in says.split("|")), done.state.reason
    assert serving(target) == champion.digest
    slots = [c.labels["trainyard.slot"] for c in client.containers.list(all=True) if c.labels]
    assert slots == ["blue"]


def test_a_later_process_finds_the_containers_again(
    target: GatewayTarget, champion: ServedVersion, tmp_path: Path
) -> None:
    again = make(tmp_path / "home")
    assert again.ready("blue").ready
    assert [r.decision for r in rollout.run(again, champion, spec=SPEC).state.done] == ["already"]


def test_an_image_that_does_not_exist_is_one_sentence(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    where = WHERE.model_copy(update={"image": "trainyard-no-such-image:0"})
    found = make(tmp_path / "home", SPEC.model_copy(update={"target": where}))
    try:
        with pytest.raises((InputError, Unavailable), match="trainyard-no-such-image:0"):
            rollout.run(found, version(tmp_path, "aaaaaaaa"), spec=SPEC)
    finally:
        found.down()


def test_an_engine_without_gpus_says_so(client: docker.DockerClient, tmp_path: Path) -> None:
    if "nvidia" in client.info().get("Runtimes", {}):
        pytest.skip("this Docker engine has GPUs")
    where = WHERE.model_copy(update={"blue_gpus": ("0",)})
    found = make(tmp_path / "home", SPEC.model_copy(update={"target": where}))
    try:
        with pytest.raises(InputError, match="could not select device driver"):
            rollout.run(found, version(tmp_path, "aaaaaaaa"), spec=SPEC)
    finally:
        found.down()


def test_no_docker_engine_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(Unavailable, match="the Docker engine did not answer"):
        DockerEngines(WHERE, tmp_path, plan).start(version(tmp_path, "aaaaaaaa"), "blue")
