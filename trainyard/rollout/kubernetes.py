"""A namespace of a cluster, by the official client: server-side apply, and errors in one sentence.

Every field is applied under the manager `trainyard` and never by force: a field that somebody else
holds is a refusal that names them, and fields that are not ours are not touched.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import urllib3
from kubernetes import client, config

from trainyard.errors import InputError, Refused, TrainyardError, Unavailable

Manifest = dict[str, Any]

MANAGER = "trainyard"
KINDS: Mapping[str, tuple[str, str]] = {
    "Pod": ("/api/v1", "pods"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "ScaledObject": ("/apis/keda.sh/v1alpha1", "scaledobjects"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "HTTPRoute": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
}
_TIMEOUT_S = 10
_TRIES = 4


class Conflict(Refused):
    """Somebody else changed the object since it was read, or holds a field of it."""


class Cluster:
    def __init__(self, namespace: str, context: str | None = None) -> None:
        self.namespace = namespace
        self._api = client.ApiClient(_configuration(context))
        self.where = self._api.configuration.host

    def close(self) -> None:
        self._api.close()

    def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: create it, or change the fields that are ours. Raises Conflict."""
        return self._call(
            "PATCH",
            manifest["kind"],
            manifest["metadata"]["name"],
            body=manifest,
            query={"fieldManager": MANAGER, "fieldValidation": "Strict"},
            content="application/apply-patch+yaml",
        )

    def get(self, kind: str, name: str) -> Manifest | None:
        try:
            return self._call("GET", kind, name)
        except _Missing:
            return None

    def list(self, kind: str, marks: Mapping[str, str]) -> list[Manifest]:
        selector = ",".join(f"{key}={value}" for key, value in sorted(marks.items()))
        found: list[Manifest] = self._call("GET", kind, "", query={"labelSelector": selector})[
            "items"
        ]
        return found

    def create(self, manifest: Manifest) -> Manifest:
        """Raises Conflict when it exists."""
        return self._call("POST", manifest["kind"], "", body=manifest)

    def replace(self, manifest: Manifest) -> Manifest:
        """Write what was read and changed. Raises Conflict when it changed in between."""
        return self._call("PUT", manifest["kind"], manifest["metadata"]["name"], body=manifest)

    def delete(self, kind: str, name: str, *, resource_version: str | None = None) -> None:
        """Delete it unless it is gone; with a resource version only in that very state."""
        options: Manifest = {"propagationPolicy": "Background"}
        if resource_version is not None:
            options["preconditions"] = {"resourceVersion": resource_version}
        try:
            self._call("DELETE", kind, name, body=options)
        except _Missing:
            return

    def last_log_line(self, pod: str, container: str) -> str:
        """Return the container's last line, of its former run if it was restarted."""
        for previous in ("true", "false"):
            query = {"container": container, "tailLines": "1", "previous": previous}
            try:
                raw = self._raw("GET", "Pod", f"{pod}/log", query=query)
            except TrainyardError:
                continue
            if said := raw.decode("utf-8", errors="replace").strip():
                return said
        return ""

    def _call(self, method: str, kind: str, name: str, **given: Any) -> Manifest:
        raw = self._raw(method, kind, name, **given)
        found: Manifest = json.loads(raw) if raw else {}
        return found

    def _raw(
        self,
        method: str,
        kind: str,
        name: str,
        *,
        body: Manifest | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> bytes:
        prefix, plural = KINDS[kind]
        path = f"{prefix}/namespaces/{self.namespace}/{plural}{f'/{name}' if name else ''}"
        what = f"{kind} {self.namespace}/{name}" if name else f"{kind}s of {self.namespace}"
        headers = {"Accept": "application/json", "Content-Type": content}
        for attempt in range(_TRIES):
            request = self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=dict(headers),
                body=body,
                auth_settings=["BearerToken"],
            )
            try:
                answer = self._api.call_api(*request, _request_timeout=_TIMEOUT_S)
                raw: bytes = answer.read()
            except urllib3.exceptions.HTTPError as error:
                problem: TrainyardError = Unavailable(
                    f"the cluster at {self.where} did not answer: {error}"
                )
            else:
                if answer.status < 300:
                    return raw
                problem = _explained(answer.status, raw, what, method)
            # every one of our calls may be repeated: applied, read, or bound to a resource version
            if not isinstance(problem, Unavailable) or attempt == _TRIES - 1:
                raise problem
            time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


class _Missing(InputError):
    pass


def _explained(status: int, raw: bytes, what: str, method: str) -> TrainyardError:
    try:
        found = json.loads(raw)
        said = str(found.get("message") or found)
    except ValueError:
        said, found = raw.decode("utf-8", errors="replace")[:300], {}
    if status in (401, 403):
        return InputError(f"the cluster does not allow {method} of {what}: {said}")
    if status == 404 and not (found.get("details") or {}).get("name"):
        return InputError(f"the cluster has no such place as {what}: {said}")
    if status == 404:
        return _Missing(f"{what} is not there: {said}")
    if status == 409:
        return Conflict(f"{what} was not changed, somebody else did: {said}")
    if status == 429 or status >= 500:
        return Unavailable(f"the cluster could not {method} {what}: {status} {said}")
    return InputError(f"the cluster refused {what}: {said}")


def _configuration(context: str | None) -> client.Configuration:
    found = client.Configuration()
    try:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=found)
        else:
            # by name: the library read the variable once, when it was imported
            path = os.environ.get("KUBECONFIG")
            config.load_kube_config(path, context=context, client_configuration=found)
    except config.ConfigException as error:
        raise InputError(
            f"no cluster to deploy to: {error}; set KUBECONFIG, or run in a pod with an account"
        ) from error
    found.retries = False
    return found
