"""Kubernetes objects of a served model, as plain data; nothing here talks to a cluster.

`python -m trainyard.rollout.manifests RECIPE VERSION_FOLDER BASE [--kserve]` prints them as YAML:
what the rollout applies for a first version, or a KServe InferenceService of the same engine.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainyard.errors import InputError, TrainyardError
from trainyard.recipe import read_recipe
from trainyard.recipe.deploy import DeploySpec, Hpa, Keda, KubernetesTarget
from trainyard.rollout.target import ServedVersion, Slot
from trainyard.serving.engines import ENGINES, Launch, adapter_rank
from trainyard.version import ADAPTER, read_manifest

Manifest = dict[str, Any]

MANAGER = "trainyard"
ENGINE_PORT, GATEWAY_PORT, ADMIN_PORT = 8000, 8080, 9090
VERSION = "trainyard.dev/version"
FETCHED = "/models"
CONFIG = "/etc/trainyard"
STATE = "/var/run/trainyard"
SCALE_DOWN_S = 300
_GATEWAY_API = "gateway.networking.k8s.io/v1"
_SHARE = 100
"""Parts of one percent that a weight of the route can tell apart."""


def slug(name: str) -> str:
    """Return the name as Kubernetes takes it; names that only differ in case stay different."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    if plain == name and plain[:1].isalpha():
        return plain
    return f"m-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def slot_name(model: str, slot: Slot) -> str:
    return f"{slug(model)}-{slot}"


def labels(model: str, slot: Slot | None = None) -> dict[str, str]:
    found = {"app.kubernetes.io/managed-by": MANAGER, "trainyard.dev/model": slug(model)}
    return found if slot is None else {**found, "trainyard.dev/slot": slot}


def _object(
    api: str, kind: str, target: KubernetesTarget, name: str, marks: dict[str, str]
) -> Manifest:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": target.namespace, "labels": marks},
    }


def pod_labels(version: ServedVersion, slot: Slot) -> dict[str, str]:
    # with the digest, so that the pods of a version that is being removed are never taken for these
    return {**labels(version.name, slot), "trainyard.dev/digest": version.digest[:12]}


def launch_of(
    spec: DeploySpec,
    target: KubernetesTarget,
    base: str,
    base_name: str,
    adapters: Mapping[str, str],
    max_rank: int,
) -> tuple[list[str] | None, list[str], dict[str, str]]:
    """Return command, arguments and environment of the engine in its image."""
    engine = ENGINES[spec.engine]
    extra = ("--threads", str(spec.threads)) if engine.name == "cpu" else ()
    launch = Launch(
        base=base,
        base_name=base_name,
        adapters=adapters,
        host="0.0.0.0",
        port=ENGINE_PORT,
        max_rank=max_rank,
        extra=extra,
    )
    program, *arguments = engine.command(launch)
    command: list[str] | None = ["python" if engine.name == "cpu" else program]
    if engine.name == "tgi":
        command = None  # its image's script refreshes the linker's cache, then launches
    return command, [*arguments, *target.arguments], {**engine.env(launch), **target.env}


def below_mount(target: KubernetesTarget, path: Path) -> str:
    """Return the path as the engine sees it. Raises InputError for one that is not on the claim."""
    if not path.is_relative_to(target.mount):
        raise InputError(
            f"{path} is not below {target.mount}, where claim {target.claim} is mounted: the "
            "engine's pods could not read it; run the release there, or set deploy.target.mount"
        )
    return str(path)


def adapter_path(target: KubernetesTarget, version: ServedVersion) -> str:
    if target.archive is not None:
        return f"{FETCHED}/adapter"
    return below_mount(target, version.adapter)


def engine_pod(
    spec: DeploySpec,
    target: KubernetesTarget,
    base: str,
    base_name: str,
    adapters: Mapping[str, str],
    max_rank: int,
) -> Manifest:
    """Return the pod that serves these adapters, without the gateway beside it."""
    engine = ENGINES[spec.engine]
    command, arguments, env = launch_of(spec, target, base, base_name, adapters, max_rank)
    gpus: Manifest = {"nvidia.com/gpu": str(target.gpus)} if target.gpus else {}
    memory = f"{math.ceil(target.memory_gib * 1024)}Mi"
    health: Manifest = {"httpGet": {"path": engine.health, "port": "engine"}, "timeoutSeconds": 5}
    container: Manifest = {
        "name": "engine",
        "image": target.image,
        **({"command": command} if command else {}),
        "args": arguments,
        "env": [{"name": name, "value": value} for name, value in sorted(env.items())],
        "ports": [{"name": "engine", "containerPort": ENGINE_PORT}],
        "resources": {
            "requests": {"cpu": target.cpu, "memory": memory, **gpus},
            "limits": {"memory": memory, **gpus},
        },
        "startupProbe": {
            **health,
            "periodSeconds": 5,
            "failureThreshold": max(3, math.ceil(spec.ready_timeout_s / 5)),
        },
        "readinessProbe": {**health, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**health, "periodSeconds": 30, "failureThreshold": 4},
        # endpoints are withdrawn while it still answers
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "securityContext": _closed(),
        "volumeMounts": [
            {"name": "weights", "mountPath": target.mount, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    return {
        "serviceAccountName": target.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 120,
        **({"imagePullSecrets": [{"name": target.pull_secret}]} if target.pull_secret else {}),
        **({"nodeSelector": dict(target.node_selector)} if target.node_selector else {}),
        **({"tolerations": _tolerations(target)} if target.tolerations else {}),
        "containers": [container],
        "volumes": [
            {
                "name": "weights",
                "persistentVolumeClaim": {"claimName": target.claim, "readOnly": True},
            },
            {
                "name": "shm",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{int(target.shm_gib * 1024)}Mi"},
            },
        ],
    }


def _closed(**more: Any) -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, **more}


def _tolerations(target: KubernetesTarget) -> list[Manifest]:
    return [
        {
            "key": one.key,
            "effect": one.effect,
            **({"operator": "Equal", "value": one.value} if one.value else {"operator": "Exists"}),
        }
        for one in target.tolerations
    ]


def _gateway(target: KubernetesTarget) -> Manifest:
    return {
        "name": "gateway",
        "image": target.gateway_image,
        "command": ["python", "-m", "trainyard.serving.gateway"],
        "args": ["--config", f"{CONFIG}/gateway.json"],
        "ports": [
            {"name": "http", "containerPort": GATEWAY_PORT},
            {"name": "admin", "containerPort": ADMIN_PORT},
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "512Mi"},
        },
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5},
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 30},
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "securityContext": _closed(
            runAsNonRoot=True, runAsUser=10001, runAsGroup=10001, readOnlyRootFilesystem=True
        ),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "state", "mountPath": STATE},
            {
                "name": "config",
                "mountPath": f"{STATE}/routes.json",
                "subPath": "routes.json",
                "readOnly": True,
            },
        ],
    }


def _fetch(target: KubernetesTarget, version: ServedVersion) -> Manifest:
    assert target.archive is not None
    source = target.archive
    return {
        "name": "fetch",
        "image": target.gateway_image,
        "command": ["python", "-m", "trainyard.rollout.fetch"],
        "args": [source.url, source.endpoint, source.region, version.name, version.digest, FETCHED],
        "env": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": source.secret, "key": name}}}
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": _closed(runAsNonRoot=True, runAsUser=10001, runAsGroup=10001),
        "volumeMounts": [{"name": "models", "mountPath": FETCHED}],
    }


def deployment(
    spec: DeploySpec, target: KubernetesTarget, version: ServedVersion, slot: Slot
) -> Manifest:
    adapters = {version.model: adapter_path(target, version)}
    pod = engine_pod(
        spec,
        target,
        below_mount(target, version.base),
        version.base_name,
        adapters,
        adapter_rank(version.adapter),
    )
    engine = pod["containers"][0]
    if target.archive is not None:
        pod["initContainers"] = [_fetch(target, version)]
        pod["volumes"].append({"name": "models", "emptyDir": {}})
        engine["volumeMounts"].append({"name": "models", "mountPath": FETCHED, "readOnly": True})
    pod["containers"].append(_gateway(target))
    pod["volumes"] += [
        {"name": "config", "secret": {"secretName": f"{slot_name(version.name, slot)}-gateway"}},
        {"name": "state", "emptyDir": {}},
    ]
    pod["securityContext"] = {"fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    found = _object(
        "apps/v1", "Deployment", target, slot_name(version.name, slot), labels(version.name, slot)
    )
    found["metadata"]["annotations"] = {VERSION: version.model_dump_json()}
    found["spec"] = {
        # with an autoscaler the number of replicas is its field, not ours
        **({} if target.scale else {"replicas": target.replicas}),
        "progressDeadlineSeconds": max(60, math.ceil(spec.ready_timeout_s)),
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": pod_labels(version, slot)},
        "template": {"metadata": {"labels": pod_labels(version, slot)}, "spec": pod},
    }
    return found


def services(target: KubernetesTarget, version: ServedVersion, slot: Slot) -> list[Manifest]:
    """Return the one that users' requests take, and one that only lists the replicas."""
    name, marks = slot_name(version.name, slot), labels(version.name, slot)
    users = _object("v1", "Service", target, name, marks)
    users["spec"] = {
        "selector": pod_labels(version, slot),
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
    }
    replicas = _object("v1", "Service", target, f"{name}-replicas", marks)
    replicas["spec"] = {
        "clusterIP": "None",
        "selector": pod_labels(version, slot),
        "ports": [
            {"name": "engine", "port": ENGINE_PORT, "targetPort": "engine"},
            {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin"},
        ],
    }
    return [users, replicas]


def gateway_secret(
    spec: DeploySpec,
    target: KubernetesTarget,
    version: ServedVersion,
    slot: Slot,
    tokens: Mapping[str, Any],
) -> Manifest:
    """Config and fixed routes of the gateways beside one version's engines."""
    asked = ENGINES[spec.engine].request_model(version.base_name, version.model)
    engine = {"url": f"http://127.0.0.1:{ENGINE_PORT}", "model": asked, "digest": version.digest}
    config = {
        "name": version.name,
        "host": "0.0.0.0",
        "port": GATEWAY_PORT,
        "admin_host": "0.0.0.0",
        "admin_port": ADMIN_PORT,
        "folder": STATE,
        "answers": spec.answers,
        "max_inflight": spec.max_inflight,
        "max_body_mib": spec.max_body_mib,
        "log_fraction": spec.log_fraction,
        **tokens,
    }
    found = _object(
        "v1",
        "Secret",
        target,
        f"{slot_name(version.name, slot)}-gateway",
        labels(version.name, slot),
    )
    found["type"] = "Opaque"
    found["stringData"] = {
        "gateway.json": json.dumps(config),
        "routes.json": json.dumps({"champion": engine}),
    }
    return found


def disruption_budget(target: KubernetesTarget, version: ServedVersion, slot: Slot) -> Manifest:
    """One replica at a time may be moved; a single one is not kept from it."""
    name = slot_name(version.name, slot)
    found = _object("policy/v1", "PodDisruptionBudget", target, name, labels(version.name, slot))
    found["spec"] = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": pod_labels(version, slot)},
    }
    return found


def autoscaler(
    spec: DeploySpec, target: KubernetesTarget, version: ServedVersion, slot: Slot
) -> Manifest | None:
    """Scale by whichever of queue and rate asks for more; down only slowly."""
    name, scale = slot_name(version.name, slot), target.scale
    if scale is None:
        return None
    waiting = ENGINES[spec.engine].metrics["waiting"]
    slow = {"scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_S}}
    if isinstance(scale, Hpa):
        found = _object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            target,
            name,
            labels(version.name, slot),
        )
        found["spec"] = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": target.replicas,
            "maxReplicas": scale.max_replicas,
            "behavior": slow,
            "metrics": [
                _pods_metric(waiting.replace(":", "_"), scale.waiting),
                _pods_metric("gateway_requests_per_second", scale.requests_per_s),
            ],
        }
        return found
    found = _object("keda.sh/v1alpha1", "ScaledObject", target, name, labels(version.name, slot))
    chosen = f'namespace="{target.namespace}",pod=~"{name}-.*"'
    found["spec"] = {
        "scaleTargetRef": {"name": name},
        "minReplicaCount": target.replicas,
        "maxReplicaCount": scale.max_replicas,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": slow}},
        "triggers": [
            _prometheus(scale, f"sum({waiting}{{{chosen}}})", scale.waiting),
            _prometheus(
                scale, f"sum(rate(gateway_requests_total{{{chosen}}}[1m]))", scale.requests_per_s
            ),
        ],
    }
    return found


def _pods_metric(name: str, value: float) -> Manifest:
    quantity = f"{round(value * 1000)}m"
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": name},
            "target": {"type": "AverageValue", "averageValue": quantity},
        },
    }


def _prometheus(scale: Keda, query: str, value: float) -> Manifest:
    return {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": scale.prometheus,
            "query": query,
            "threshold": f"{value:g}",
        },
    }


def network_policy(target: KubernetesTarget, model: str) -> Manifest:
    """Users reach the gateways only, by way of the Gateway; engines are for controllers."""
    found = _object("networking.k8s.io/v1", "NetworkPolicy", target, slug(model), labels(model))
    namespace = "kubernetes.io/metadata.name"

    def ports(*numbers: int) -> list[Manifest]:
        return [{"protocol": "TCP", "port": number} for number in numbers]

    def of(name: str) -> Manifest:
        return {"namespaceSelector": {"matchLabels": {namespace: name}}}

    controllers = {
        **of(target.controllers),
        "podSelector": {"matchLabels": {"trainyard.dev/role": "controller"}},
    }
    found["spec"] = {
        "podSelector": {"matchLabels": labels(model)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [of(target.gateway.partition("/")[0])], "ports": ports(GATEWAY_PORT)},
            {"from": [controllers], "ports": ports(ENGINE_PORT, ADMIN_PORT)},
            {"from": [of(target.monitoring)], "ports": ports(ENGINE_PORT, ADMIN_PORT)},
        ],
    }
    return found


def route(
    target: KubernetesTarget,
    model: str,
    weights: Mapping[Slot, float],
    champion: Slot,
    shadow_pct: float = 0,
) -> Manifest:
    """The weights of all slots, and a way to ask for one of them by header.

    The rules are one list to Kubernetes: whoever applies them owns all of them.
    """
    others = [slot for slot in weights if slot != champion]
    backends = [_backend(model, slot, weight) for slot, weight in sorted(weights.items())]
    split: Manifest = {"matches": [_under_v1()], "backendRefs": backends}
    if shadow_pct and others:
        mirror = {"backendRef": _backend(model, others[0]), "percent": round(shadow_pct)}
        split["filters"] = [{"type": "RequestMirror", "requestMirror": mirror}]
    found = _object(_GATEWAY_API, "HTTPRoute", target, slug(model), labels(model))
    where, name = target.gateway.split("/")
    # the champion's rule is the first: champion_of reads it
    asked = {"champion": champion, **({"canary": others[0]} if others else {})}
    found["spec"] = {
        "parentRefs": [{"namespace": where, "name": name}],
        "hostnames": [target.hostname],
        "rules": [*(_asked(model, role, slot) for role, slot in asked.items()), split],
    }
    return found


def _under_v1() -> Manifest:
    return {"path": {"type": "PathPrefix", "value": "/v1"}}


def _backend(model: str, slot: Slot, weight: float | None = None) -> Manifest:
    found: Manifest = {"name": slot_name(model, slot), "port": 80}
    return found if weight is None else {**found, "weight": round(weight * _SHARE)}


def _asked(model: str, role: str, slot: Slot) -> Manifest:
    """A rule for requests that name their variant; each gateway calls its own `champion`."""
    header = {"type": "Exact", "name": "x-trainyard-variant", "value": role}
    own = {"set": [{"name": "x-trainyard-variant", "value": "champion"}]}
    return {
        "matches": [{**_under_v1(), "headers": [header]}],
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": own}],
        "backendRefs": [_backend(model, slot)],
    }


def split_of(found: Manifest, model: str) -> dict[Slot, float]:
    """Return the weights, in percent, that a route has."""
    slots: dict[str, Slot] = {slot_name(model, slot): slot for slot in ("blue", "green")}
    return {
        slots[backend["name"]]: backend.get("weight", 1) / _SHARE
        for backend in found["spec"]["rules"][-1]["backendRefs"]
    }


def is_split(found: Manifest) -> bool:
    """Whether anything but the champion gets users' requests, or copies of them."""
    rules = found["spec"]["rules"]
    champion = rules[0]["backendRefs"][0]["name"]
    split = rules[-1]
    weighted = [one["name"] for one in split["backendRefs"] if one.get("weight", 1)]
    return weighted != [champion] or "filters" in split


def without_split(found: Manifest) -> Manifest:
    """Return what to apply so that the champion has everything and the rest stays."""
    rules: list[Manifest] = found["spec"]["rules"]
    champion = rules[0]["backendRefs"][0]["name"]
    split = {
        "matches": rules[-1]["matches"],
        "backendRefs": [
            {**one, "weight": 100 * _SHARE if one["name"] == champion else 0}
            for one in rules[-1]["backendRefs"]
        ],
    }
    metadata = {name: found["metadata"][name] for name in ("name", "namespace", "labels")}
    ours = {
        mark: value
        for mark, value in metadata["labels"].items()
        if mark == "app.kubernetes.io/managed-by" or mark.startswith("trainyard.dev/")
    }
    return {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "metadata": {**metadata, "labels": ours},
        "spec": {
            **{name: found["spec"][name] for name in ("parentRefs", "hostnames")},
            "rules": [*rules[:-1], split],
        },
    }


def champion_of(found: Manifest, model: str) -> Slot:
    """Return the slot that a route calls champion."""
    named = found["spec"]["rules"][0]["backendRefs"][0]["name"]
    return "blue" if named == slot_name(model, "blue") else "green"


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
    found = _object(
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
