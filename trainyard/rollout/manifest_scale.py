"""How many replicas a slot has: what changes their number, and how few there may be."""

from trainyard.recipe.deploy import DeploySpec, Hpa, Keda, KubernetesTarget
from trainyard.rollout.manifest_names import (
    SCALE_DOWN_S,
    Manifest,
    labels,
    new_object,
    pod_labels,
    slot_name,
)
from trainyard.rollout.target import ServedVersion, Slot
from trainyard.serving.engines import ENGINES


def disruption_budget(target: KubernetesTarget, version: ServedVersion, slot: Slot) -> Manifest:
    """One replica at a time may be moved; a single one is not kept from it."""
    name = slot_name(version.name, slot)
    found = new_object("policy/v1", "PodDisruptionBudget", target, name, labels(version.name, slot))
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
        found = new_object(
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
    found = new_object("keda.sh/v1alpha1", "ScaledObject", target, name, labels(version.name, slot))
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
