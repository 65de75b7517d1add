"""How requests reach a slot: services, one HTTPRoute whose weights move, who may connect."""

from collections.abc import Mapping

from trainyard.recipe.deploy import KubernetesTarget
from trainyard.rollout.manifest_names import (
    ADMIN_PORT,
    ENGINE_PORT,
    GATEWAY_PORT,
    Manifest,
    labels,
    new_object,
    pod_labels,
    slot_name,
    slug,
)
from trainyard.rollout.target import ServedVersion, Slot

_GATEWAY_API = "gateway.networking.k8s.io/v1"
_SHARE = 100
"""Parts of one percent that a weight of the route can tell apart."""


def services(target: KubernetesTarget, version: ServedVersion, slot: Slot) -> list[Manifest]:
    """Return the one that users' requests take, and one that only lists the replicas."""
    name, marks = slot_name(version.name, slot), labels(version.name, slot)
    users = new_object("v1", "Service", target, name, marks)
    users["spec"] = {
        "selector": pod_labels(version, slot),
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
    }
    replicas = new_object("v1", "Service", target, f"{name}-replicas", marks)
    replicas["spec"] = {
        "clusterIP": "None",
        "selector": pod_labels(version, slot),
        "ports": [
            {"name": "engine", "port": ENGINE_PORT, "targetPort": "engine"},
            {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin"},
        ],
    }
    return [users, replicas]


def network_policy(target: KubernetesTarget, model: str) -> Manifest:
    """Users reach the gateways only, by way of the Gateway; engines are for controllers."""
    found = new_object("networking.k8s.io/v1", "NetworkPolicy", target, slug(model), labels(model))
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
    found = new_object(_GATEWAY_API, "HTTPRoute", target, slug(model), labels(model))
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
