"""A target made of pods: a Deployment and a Service per slot, one HTTPRoute whose weights move.

What runs is on record in the cluster, as annotations. A gateway beside each engine keeps the
records that are read here; the weights themselves are the Gateway API's. A Lease bounds how long a
split may last without word from its controller: kubernetes_lease.py ends it.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainyard import files
from trainyard.errors import NotFound, Unavailable
from trainyard.recipe.deploy import DeploySpec, KubernetesTarget
from trainyard.rollout import manifest_names, manifest_traffic, manifests
from trainyard.rollout.gateway_client import GatewayClient
from trainyard.rollout.gateway_target import SLOTS, SPEC_FILE, check_weights, serving_folder
from trainyard.rollout.kubernetes import Cluster
from trainyard.rollout.kubernetes_lease import Lease
from trainyard.rollout.manifest_names import Manifest
from trainyard.rollout.target import (
    FOR_GOOD,
    Engine,
    Observation,
    Readiness,
    ServedVersion,
    Slot,
    Terms,
)
from trainyard.secrets import resolve
from trainyard.serving.engines import ENGINES, Probe, not_ready

logger = logging.getLogger(__name__)

_HOPELESS = {
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
}
_CRASHES = 3
_ROUTE_S = 30.0
_CHECKPOINTS = 8


class Replica(NamedTuple):
    """One pod's gateway and engine, as its EndpointSlice names them."""

    pod: str
    engine: str
    admin: str


Cursor = dict[str, Any]
"""`boot` of a replica's gateway, and the `next` record to read there."""


class PodsTarget:
    def __init__(self, spec: DeploySpec, name: str, home: Path, cluster: Cluster) -> None:
        assert isinstance(spec.target, KubernetesTarget)
        self.name = name
        self.folder = serving_folder(home, name)
        self._spec = spec
        self._where = spec.target
        self._cluster = cluster
        self._proven: set[tuple[str, str]] = set()
        self._withheld = False

    def endpoint(self) -> str:
        if self._route() is None:
            raise NotFound(f"no HTTPRoute serves {self.name} in {self._cluster.namespace}")
        return self._where.url

    # the engines

    def engine(self, slot: Slot) -> Engine | None:
        found = self._cluster.get("Deployment", manifest_names.slot_name(self.name, slot))
        if found is None:
            return None
        version = ServedVersion.model_validate_json(
            found["metadata"]["annotations"][manifest_names.VERSION]
        )
        dead, restarts = self._health(found, version, slot)
        url = f"http://{manifest_names.slot_name(self.name, slot)}.{self._cluster.namespace}"
        return Engine(version=version, url=url, alive=not dead, last_words=dead, restarts=restarts)

    def start(self, version: ServedVersion, slot: Slot) -> None:
        files.write_json(self.folder / SPEC_FILE, self._spec.model_dump(mode="json"))
        found = self.engine(slot)
        if found is not None and (found.version != version or not found.alive):
            self.stop(slot)
        for one in manifests.objects(self._spec, self._where, version, slot, self._tokens()):
            self._cluster.apply(one)

    def _health(self, found: Manifest, version: ServedVersion, slot: Slot) -> tuple[str, int]:
        """Return why waiting is of no use, if so, and how often its engines crashed."""
        for condition in found.get("status", {}).get("conditions", []):
            kind, status = condition["type"], condition["status"]
            if (kind, status) == ("ReplicaFailure", "True"):
                return str(condition.get("message", "pods could not be made")), 0
            if (kind, status) == ("Progressing", "False"):
                return str(condition.get("message", "no progress")), 0
        restarts, dead = 0, ""
        for pod in self._cluster.list("Pod", manifest_names.pod_labels(version, slot)):
            states = pod.get("status", {})
            every = states.get("initContainerStatuses", []) + states.get("containerStatuses", [])
            for container in every:
                restarts += container.get("restartCount", 0)
                dead = dead or self._end_of(pod["metadata"]["name"], container)
        return dead, restarts

    def _end_of(self, pod: str, container: Manifest) -> str:
        name, state = container["name"], container.get("state", {})
        waiting, ended = state.get("waiting", {}), state.get("terminated")
        if waiting.get("reason") in _HOPELESS:
            return f"{name}: {waiting['reason']}: {waiting.get('message', '')}"
        last = ended or container.get("lastState", {}).get("terminated")
        if last and (ended or container.get("restartCount", 0) >= _CRASHES):
            said = self._cluster.last_log_line(pod, name)
            return f"{name} ended with {last.get('exitCode')} {last.get('reason', '')}: {said}"
        return ""

    def ready(self, slot: Slot) -> Readiness:
        """Whether every replica is in an EndpointSlice, healthy, and answers as evaluated."""
        name = manifest_names.slot_name(self.name, slot)
        found, engine = self._cluster.get("Deployment", name), self.engine(slot)
        if found is None or engine is None:
            return Readiness(ready=False, alive=False, why=f"nothing was started in {slot}")
        if not engine.alive:
            return Readiness(ready=False, alive=False, why=f"the engine ended: {engine.last_words}")
        why = self._behind(found) or self._unready(slot, engine.version)
        return Readiness(ready=not why, alive=True, why=why, restarts=engine.restarts)

    def _behind(self, found: Manifest) -> str:
        status = found.get("status", {})
        if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
            return "the cluster has not seen the newest Deployment yet"
        wanted = found["spec"].get("replicas", 1)
        there = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0))
        return "" if there >= wanted else f"{there} of {wanted} replicas are available"

    def _unready(self, slot: Slot, version: ServedVersion) -> str:
        replicas = self._replicas(slot)
        if not replicas:
            return "no replica is in an EndpointSlice yet"
        for replica in replicas:
            proof = (version.digest, replica.pod)
            proven = proof in self._proven
            why = not_ready(
                replica.engine,
                ENGINES[self._spec.engine],
                version.model,
                base_name=version.base_name,
                probe=Probe(
                    messages=version.probe.messages,
                    max_tokens=1 if proven else version.probe.max_tokens,
                    answer=None if proven else version.probe.answer,
                ),
            )
            if why is not None:
                return f"{replica.pod}: {why}"
            self._proven.add(proof)
        return ""

    def _replicas(self, slot: Slot) -> list[Replica]:
        """Every ready replica of a slot."""
        service = f"{manifest_names.slot_name(self.name, slot)}-replicas"
        found = []
        for piece in self._cluster.list("EndpointSlice", {"kubernetes.io/service-name": service}):
            ports = {port["name"]: port["port"] for port in piece.get("ports") or []}
            for endpoint in piece.get("endpoints") or []:
                # None means unknown, which Kubernetes says to take for ready
                if endpoint.get("conditions", {}).get("ready") is False:
                    continue
                address = endpoint["addresses"][0]
                host = f"[{address}]" if ":" in address else address
                found.append(
                    Replica(
                        pod=endpoint.get("targetRef", {}).get("name", address),
                        engine=f"http://{host}:{ports['engine']}",
                        admin=f"http://{host}:{ports['admin']}",
                    )
                )
        return sorted(found)

    def stop(self, slot: Slot) -> None:
        # by name: listing secrets would need the right to read all of them
        name = manifest_names.slot_name(self.name, slot)
        if self._where.scale is not None:
            keda = self._where.scale.kind == "keda"
            self._cluster.delete("ScaledObject" if keda else "HorizontalPodAutoscaler", name)
        self._cluster.delete("PodDisruptionBudget", name)
        self._cluster.delete("Deployment", name)
        self._cluster.delete("Service", name)
        self._cluster.delete("Service", f"{name}-replicas")
        self._cluster.delete("Secret", f"{name}-gateway")

    # the traffic

    def _tokens(self) -> dict[str, Any]:
        path = self.folder / "gateway.tokens.json"
        if not path.exists():
            made = {name: secrets.token_urlsafe(24) for name in ("token", "replay_token")}
            files.write_json(path, made, mode=0o600)
        keys = [hashlib.sha256(resolve(key).encode()).hexdigest() for key in self._spec.api_keys]
        return {**files.read_json(path), "api_keys": keys}

    def _route(self) -> Manifest | None:
        return self._cluster.get("HTTPRoute", manifest_names.slug(self.name))

    def set_weights(
        self, weights: Mapping[Slot, float], champion: Slot, terms: Terms = FOR_GOOD
    ) -> None:
        check_weights(weights, champion)
        given = self._without_dead_ends(weights, champion)
        self._withheld = given != dict(weights)
        lease = Lease(self._cluster, self.name)
        if terms.lease_s is not None:
            lease.take(terms.lease_s, terms.salt)
        found = self._cluster.apply(
            manifest_traffic.route(self._where, self.name, given, champion, terms.shadow_pct)
        )
        self._await_accepted(found["metadata"]["generation"])
        if terms.lease_s is None:
            lease.drop()

    def _without_dead_ends(
        self, weights: Mapping[Slot, float], champion: Slot
    ) -> dict[Slot, float]:
        """Leave to the champion what a slot without a ready replica would answer with 503."""
        given = dict(weights)
        for slot, weight in weights.items():
            if slot != champion and weight and not self._replicas(slot):
                logger.warning("slot %s of %s has no ready replica: no traffic", slot, self.name)
                given[champion] += weight
                given[slot] = 0
        return given

    def _await_accepted(self, generation: int) -> None:
        """Wait until a Gateway has taken the route as it is now."""
        why = "no Gateway has said anything about it"
        end = time.monotonic() + _ROUTE_S
        while time.monotonic() < end:
            found = self._route() or {}
            why = _unaccepted(found, generation)
            if not why:
                return
            time.sleep(0.2)
        raise Unavailable(
            f"HTTPRoute {self._cluster.namespace}/{manifest_names.slug(self.name)}: {why}"
        )

    def renew(self, lease_s: float) -> bool:
        # what was withheld is asked for again: the caller sets its weights anew
        return not self._withheld and Lease(self._cluster, self.name).renew(lease_s)

    def observe(self, since: int) -> Observation:
        """Merge the records of all replicas; each has its own numbers, ours count the merged ones.

        Where each replica stood is on disk by our number, so that an answer lost on the way, or a
        controller that was killed, reads the same records again.
        """
        path = self.folder / "replicas.json"
        known: dict[str, Any] = (
            files.read_json(path) if path.exists() else {"boot": secrets.token_hex(8), "stood": []}
        )
        stood: dict[int, dict[str, Cursor]] = dict(known["stood"])
        cursors = dict(stood.pop(since, {}))
        route = self._route()
        token = self._tokens()["token"]
        records: list[dict[str, Any]] = []
        lost = 0
        for slot in SLOTS:
            for replica in self._replicas(slot):
                found = _read(GatewayClient(replica.admin, token), replica.pod, cursors)
                if found is not None:
                    lost += found.lost
                    records += [_placed(record, slot, route, self.name) for record in found.records]
        records.sort(key=lambda record: record["at"])
        number = since + len(records)
        stood.pop(number, None)
        newest = [*stood.items(), (number, cursors)][-_CHECKPOINTS:]
        files.write_json(path, {"boot": known["boot"], "stood": newest})
        return Observation(
            boot=known["boot"],
            next=number,
            lost=lost,
            records=tuple({**record, "seq": since + n} for n, record in enumerate(records)),
        )

    def replay_headers(self) -> Mapping[str, str]:
        return {"x-trainyard-replay": str(self._tokens()["replay_token"])}

    def down(self) -> None:
        self._cluster.delete("HTTPRoute", manifest_names.slug(self.name))
        for slot in SLOTS:
            self.stop(slot)
        self._cluster.delete("NetworkPolicy", manifest_names.slug(self.name))
        Lease(self._cluster, self.name).drop()


def _read(gateway: GatewayClient, pod: str, cursors: dict[str, Cursor]) -> Observation | None:
    """Read a replica's newest records; one that does not answer is read next time."""
    before = cursors.get(pod, {"boot": "", "next": 0})
    try:
        found = gateway.records(before["next"])
        if before["next"] and found.boot != before["boot"]:
            found = gateway.records(0)
    except Unavailable:
        return None
    cursors[pod] = {"boot": found.boot, "next": found.next}
    return found


def _placed(
    record: dict[str, Any], slot: Slot, route: Manifest | None, model: str
) -> dict[str, Any]:
    """Say which variant answered: each gateway takes its own engine for the champion."""
    if route is None or slot == manifest_traffic.champion_of(route, model):
        return record
    unseen = not manifest_traffic.split_of(route, model).get(slot) and record["source"] == "live"
    return {**record, "variant": "canary", "source": "shadow" if unseen else record["source"]}


def _unaccepted(found: Manifest, generation: int) -> str:
    """Return why a route does not hold yet; nothing when a Gateway has taken it as it is."""
    parents = found.get("status", {}).get("parents") or []
    if not parents:
        return "no Gateway has said anything about it"
    for parent in parents:
        conditions = {one["type"]: one for one in parent.get("conditions", [])}
        for kind in ("Accepted", "ResolvedRefs"):
            one = conditions.get(kind, {})
            if one.get("status") != "True":
                return f"{kind} is {one.get('status', 'unknown')}: {one.get('message', '')}"
            if one.get("observedGeneration", 0) < generation:
                return f"{kind} is about an older state"
    return ""
