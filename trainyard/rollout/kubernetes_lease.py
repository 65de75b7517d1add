"""The dead-man's lease of a rollout in a cluster, and the guard that acts when it runs out.

`python -m trainyard.rollout.kubernetes_lease NAMESPACE [--every S]` watches every split of the
namespace: without a lease that is renewed, the champion gets all traffic back.
"""

import argparse
import math
import sys
import time
from datetime import UTC, datetime
from typing import Any

from trainyard.errors import Refused, TrainyardError
from trainyard.rollout import manifest_names, manifest_traffic
from trainyard.rollout.kubernetes import Cluster, Conflict, Manifest

_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_MARKS = {"app.kubernetes.io/managed-by": manifest_names.MANAGER}


class Lease:
    """One model's Lease; only in force while a split is."""

    def __init__(self, cluster: Cluster, model: str) -> None:
        self._cluster = cluster
        self._model = model
        self._name = f"{manifest_names.slug(model)}-rollout"

    def _read(self) -> Manifest | None:
        return self._cluster.get("Lease", self._name)

    def take(self, seconds: float, holder: str) -> None:
        """Begin or extend it. Raises Refused while another rollout holds it."""
        found = self._read()
        try:
            if found is None:
                self._cluster.create(
                    {
                        "apiVersion": "coordination.k8s.io/v1",
                        "kind": "Lease",
                        "metadata": {
                            "name": self._name,
                            "namespace": self._cluster.namespace,
                            "labels": manifest_names.labels(self._model),
                        },
                        "spec": _spec(holder, seconds),
                    }
                )
                return
            held = found["spec"].get("holderIdentity")
            if held != holder and not has_lapsed(found):
                raise Refused(
                    f"rollout {held} of {self._model} is in progress in namespace "
                    f"{self._cluster.namespace}; wait for it, or abort it"
                )
            self._cluster.replace({**found, "spec": _spec(holder, seconds)})
        except Conflict as error:
            raise Refused(f"another controller changed the rollout: {error}") from error

    def renew(self, seconds: float) -> bool:
        """Extend it; False if it had run out."""
        found = self._read()
        if found is None or has_lapsed(found):
            return False
        try:
            self._cluster.replace(
                {**found, "spec": _spec(found["spec"]["holderIdentity"], seconds)}
            )
        except Conflict:
            return False
        return True

    def drop(self) -> None:
        self._cluster.delete("Lease", self._name)


def _spec(holder: str, seconds: float) -> dict[str, Any]:
    now = datetime.now(UTC).strftime(_TIME)
    return {
        "holderIdentity": holder,
        "leaseDurationSeconds": math.ceil(seconds),
        "acquireTime": now,
        "renewTime": now,
    }


def has_lapsed(found: Manifest) -> bool:
    spec = found["spec"]
    renewed = datetime.strptime(spec["renewTime"], _TIME).replace(tzinfo=UTC)
    return (datetime.now(UTC) - renewed).total_seconds() > float(spec["leaseDurationSeconds"])


def guard(cluster: Cluster) -> list[str]:
    """Give every champion whose rollout fell silent all its traffic; returns the models."""
    return [
        found["metadata"]["name"]
        for found in cluster.list("HTTPRoute", _MARKS)
        if manifest_traffic.is_split(found) and _is_silent(cluster, found)
        if _returned(cluster, found)
    ]


def _is_silent(cluster: Cluster, route: Manifest) -> bool:
    """Whether the lease ended; it is deleted then, unless it was renewed just now."""
    found = cluster.get("Lease", f"{route['metadata']['name']}-rollout")
    if found is None:
        return True
    if not has_lapsed(found):
        return False
    metadata = found["metadata"]
    try:
        cluster.delete("Lease", metadata["name"], resource_version=metadata["resourceVersion"])
    except Conflict:
        return False
    return True


def _returned(cluster: Cluster, route: Manifest) -> bool:
    try:
        cluster.apply(manifest_traffic.without_split(route))
    except Conflict:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="trainyard.rollout.kubernetes_lease", description=__doc__)
    parser.add_argument("namespace")
    parser.add_argument("--every", type=float, default=5, help="seconds between two looks")
    given = parser.parse_args()
    try:
        cluster = Cluster(given.namespace)
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return 2
    while True:
        try:
            for model in guard(cluster):
                print(f"{model}: its rollout fell silent, the champion has all traffic", flush=True)
        except TrainyardError as error:
            # a cluster that is away for a while is no reason to stop guarding
            print(error, file=sys.stderr, flush=True)
        time.sleep(given.every)


if __name__ == "__main__":
    sys.exit(main())
