"""Kubernetes objects of a served model, as plain data; nothing here talks to a cluster.

`python -m trainyard.rollout.manifests RECIPE VERSION_FOLDER BASE [--kserve]` prints them as YAML:
what the rollout applies for a first version, or a KServe InferenceService of the same engine.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainyard.errors import InputError, TrainyardError
from trainyard.recipe import read_recipe
from trainyard.recipe.deploy import DeploySpec, KubernetesTarget
from trainyard.rollout.manifest_names import ENGINE_PORT, Manifest, labels, new_object, slug
from trainyard.rollout.manifest_pod import deployment, gateway_secret
from trainyard.rollout.manifest_scale import autoscaler, disruption_budget
from trainyard.rollout.manifest_traffic import network_policy, route, services
from trainyard.rollout.target import ServedVersion, Slot
from trainyard.version import ADAPTER, read_manifest


def objects(
    spec: DeploySpec,
    target: KubernetesTarget,
    version: ServedVersion,
    slot: Slot,
    tokens: Mapping[str, Any],
) -> list[Manifest]:
    """Everything that a slot needs, in the order to apply it."""
    scaler = autoscaler(spec, target, version, slot)
    return [
        network_policy(target, version.name),
        gateway_secret(spec, target, version, slot, tokens),
        *services(target, version, slot),
        disruption_budget(target, version, slot),
        deployment(spec, target, version, slot),
        *([scaler] if scaler else []),
    ]


def inference_service(
    spec: DeploySpec, target: KubernetesTarget, version: ServedVersion
) -> Manifest:
    """The same engine as a KServe InferenceService in Standard mode.

    KServe's own canary is ignored in this mode (kserve#5335), so this is one version with all
    traffic, for clusters where KServe is the rule; trainyard does not drive it.
    """
    pod = deployment(spec, target, version, "blue")["spec"]["template"]["spec"]
    engine = next(one for one in pod["containers"] if one["name"] == "engine")
    container = {k: v for k, v in engine.items() if k != "lifecycle"} | {
        "name": "kserve-container",
        "ports": [{"name": "http1", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        ask = {**container[probe]["httpGet"], "port": ENGINE_PORT}
        container[probe] = {**container[probe], "httpGet": ask}
    kept = {"config", "state"}
    found = new_object(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        target,
        slug(version.name),
        labels(version.name),
    )
    found["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Standard"}
    found["spec"] = {
        "predictor": {
            **{k: v for k, v in pod.items() if k not in ("containers", "volumes")},
            "minReplicas": target.replicas,
            "maxReplicas": target.scale.max_replicas if target.scale else target.replicas,
            "containers": [container],
            "volumes": [volume for volume in pod["volumes"] if volume["name"] not in kept],
        }
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="trainyard.rollout.manifests", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("version", type=Path, help="folder of a version, as the pods see it")
    parser.add_argument("base", type=Path, help="folder of the base model, as the pods see it")
    parser.add_argument("--kserve", action="store_true")
    given = parser.parse_args()
    try:
        print(yaml.safe_dump_all(_exported(given), sort_keys=False), end="")
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _exported(given: argparse.Namespace) -> list[Manifest]:
    recipe = read_recipe(given.recipe)
    spec, target = recipe.deploy, recipe.deploy.target
    if not isinstance(target, KubernetesTarget):
        raise InputError(f"{given.recipe} deploys to {target.kind}, not to kubernetes")
    found = read_manifest(given.version)
    version = ServedVersion(
        name=found.name,
        digest=found.digest,
        adapter=(given.version / ADAPTER).absolute(),
        base=given.base.absolute(),
    )
    if given.kserve:
        return [inference_service(spec, target, version)]
    hidden = {"token": "REPLACE-THIS-ADMIN-TOKEN", "replay_token": "REPLACE-THIS-REPLAY-TOKEN"}
    return [
        *objects(spec, target, version, "blue", hidden),
        route(target, version.name, {"blue": 100}, "blue"),
    ]


if __name__ == "__main__":
    sys.exit(main())
