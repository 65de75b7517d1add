"""Names, labels and ports that Kubernetes objects of a served model share."""

import hashlib
import re
from pathlib import Path
from typing import Any

from trainyard.errors import InputError
from trainyard.recipe.deploy import KubernetesTarget
from trainyard.rollout.target import ServedVersion, Slot

Manifest = dict[str, Any]
MANAGER = "trainyard"
ENGINE_PORT, GATEWAY_PORT, ADMIN_PORT = 8000, 8080, 9090
VERSION = "trainyard.dev/version"
FETCHED = "/models"
CONFIG = "/etc/trainyard"
STATE = "/var/run/trainyard"
SCALE_DOWN_S = 300


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


def new_object(
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


def below_mount(target: KubernetesTarget, path: Path) -> str:
    """Return the path as the engine sees it. Raises InputError for one that is not on the claim."""
    if not path.is_relative_to(target.mount):
        raise InputError(
            f"{path} is not below {target.mount}, where claim {target.claim} is mounted: the "
            "engine's pods could not read it; run the release there, or set deploy.target.mount"
        )
    return str(path)
