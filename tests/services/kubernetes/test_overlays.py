"""deployments/kubernetes as kustomize renders it, validated strictly and without a cluster."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.kubernetes.schemas import problems
from trainyard.rollout.kubernetes import KINDS

FOLDER = Path("deployments/kubernetes")
ENVIRONMENTS = ["dev", "staging", "production"]

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed"
)


@pytest.fixture(params=ENVIRONMENTS)
def rendered(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / request.param)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {f"{o['kind']}/{o['metadata']['name']}": o for o in yaml.safe_load_all(done.stdout)}
    found["environment"] = {"name": request.param}
    return found


@needs_kubectl
def test_every_object_is_valid_and_in_its_environment(rendered: dict[str, Any]) -> None:
    environment = rendered.pop("environment")["name"]
    assert len(rendered) >= 20
    for name, found in rendered.items():
        assert problems(found) == "", name
        if found["kind"] != "Namespace":
            assert found["metadata"]["namespace"].endswith(f"-{environment}"), name
        for subject in found.get("subjects", []):
            assert subject["namespace"] == f"trainyard-{environment}", name


@needs_kubectl
def test_pods_are_closed_and_pinned(rendered: dict[str, Any]) -> None:
    for name, found in rendered.items():
        if not name.startswith("Deployment/"):
            continue
        pod = found["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            assert "@sha256:" in container["image"], name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["limits"]["memory"], name
    guard = rendered["Deployment/guard"]["spec"]["template"]["spec"]["containers"][0]
    assert guard["env"][0]["value"] == f"models-{rendered['environment']['name']}"


def documents() -> list[dict[str, Any]]:
    """Every object of the bases, for machines without kubectl."""
    files = [p for p in FOLDER.glob("base/*/*.yaml") if p.name != "kustomization.yaml"]
    return [one for path in files for one in yaml.safe_load_all(path.read_text())]


def test_the_bases_are_valid_as_they_are() -> None:
    for found in documents():
        assert problems(found) == "", found["metadata"]["name"]


def test_no_right_is_wider_than_its_use() -> None:
    roles = {d["metadata"]["name"]: d["rules"] for d in documents() if d["kind"] == "Role"}
    assert not [d for d in documents() if d["kind"].startswith("ClusterRole")]
    for name, rules in roles.items():
        for rule in rules:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], name
            if "secrets" in rule["resources"]:
                assert set(rule["verbs"]) <= {"create", "patch", "delete"}, "nobody reads secrets"
    may = {
        (group, resource)
        for rule in roles["trainyard-rollout"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    used = {
        ("" if prefix == "/api/v1" else prefix.split("/")[2], plural)
        for prefix, plural in KINDS.values()
    }
    assert may == used | {("", "pods/log")}, "the rollout's rights are the kinds that it uses"
