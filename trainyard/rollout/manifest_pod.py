"""The pods of a slot: an engine, the gateway beside it, and what brings the weights."""

import json
import math
from collections.abc import Mapping
from typing import Any

from trainyard.recipe.deploy import DeploySpec, KubernetesTarget
from trainyard.rollout.manifest_names import (
    ADMIN_PORT,
    CONFIG,
    ENGINE_PORT,
    FETCHED,
    GATEWAY_PORT,
    STATE,
    VERSION,
    Manifest,
    below_mount,
    labels,
    new_object,
    pod_labels,
    slot_name,
)
from trainyard.rollout.target import ServedVersion, Slot
from trainyard.serving.engines import ENGINES, Launch, adapter_rank


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
    found = new_object(
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
    found = new_object(
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
