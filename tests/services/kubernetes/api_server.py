"""A Kubernetes API server of our own, for tests: what the real one promises and clients rely on.

Resource versions, generations, optimistic locking (409), label selectors, watches, preconditions,
and server-side apply with managed fields and conflicts. Bodies are validated strictly: built-in
kinds against the published schemas, custom ones against schemas.py. Lists are atomic to server-side
apply, except those that Kubernetes merges by name. Not here: admission, defaults, RBAC beyond one
token.
"""

import asyncio
import copy
import json
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.services.kubernetes.schemas import problems

Manifest = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace and name."""

TOKEN = "a-token-of-the-cluster"
BY_NAME = {"containers", "initContainers", "volumes", "env"}
GROUPS = {
    "/api/v1": {"pods": "Pod", "secrets": "Secret", "services": "Service"},
    "/apis/apps/v1": {"deployments": "Deployment"},
    "/apis/autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "/apis/policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "/apis/networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "/apis/discovery.k8s.io/v1": {"endpointslices": "EndpointSlice"},
    "/apis/coordination.k8s.io/v1": {"leases": "Lease"},
    "/apis/gateway.networking.k8s.io/v1": {"httproutes": "HTTPRoute"},
    "/apis/keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
}


class Failure(Exception):
    def __init__(self, status: int, reason: str, message: str, name: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": status,
            "reason": reason,
            "message": message,
            "details": {"name": name} if name else {},
        }


class Api:
    """The objects, and what happens to them. Used from one event loop."""

    def __init__(self, namespaces: set[str]) -> None:
        self.namespaces = namespaces
        self.objects: dict[Key, Manifest] = {}
        self.events: list[tuple[int, str, str, Manifest]] = []
        self.changed = asyncio.Event()
        self.faults: deque[tuple[str, str, int]] = deque()
        """(method, plural, status): the next such call answers that status instead."""
        self.logs: dict[str, str] = {}
        self.calls: list[tuple[str, str, int]] = []
        self._version = 100

    def _commit(self, event: str, key: Key, found: Manifest) -> Manifest:
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        if event == "DELETED":
            self.objects.pop(key)
        else:
            self.objects[key] = found
        self.events.append((self._version, event, key[0], copy.deepcopy(found)))
        self.changed.set()
        self.changed = asyncio.Event()
        return found

    def find(self, plural: str, namespace: str, name: str) -> Manifest:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            raise Failure(404, "NotFound", f'{plural} "{name}" not found', name)
        return found

    def list(self, plural: str, namespace: str, selector: str = "") -> list[Manifest]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        return [
            found
            for (kind, where, _), found in self.objects.items()
            if (kind, where) == (plural, namespace)
            and wanted.items() <= found["metadata"].get("labels", {}).items()
        ]

    def create(self, plural: str, namespace: str, given: Manifest) -> Manifest:
        key = (plural, namespace, given["metadata"]["name"])
        if key in self.objects:
            raise Failure(409, "AlreadyExists", f'{plural} "{key[2]}" already exists', key[2])
        return self._commit("ADDED", key, self._fresh(namespace, given))

    def _fresh(self, namespace: str, given: Manifest) -> Manifest:
        found = copy.deepcopy(given)
        found["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "namespace": namespace}
        _check(found)
        return found

    def replace(
        self, plural: str, namespace: str, given: Manifest, *, locked: bool = True
    ) -> Manifest:
        """Write a whole object; `locked` only in the state that was read."""
        name = given["metadata"]["name"]
        old = self.find(plural, namespace, name)
        read = given["metadata"].get("resourceVersion")
        if locked and read != old["metadata"]["resourceVersion"]:
            raise Failure(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {plural} "{name}": the object has been '
                "modified; please apply your changes to the latest version and try again",
                name,
            )
        found = copy.deepcopy(given)
        for fixed in ("uid", "namespace"):
            found["metadata"][fixed] = old["metadata"][fixed]
        changed = found.get("spec") != old.get("spec")
        found["metadata"]["generation"] = old["metadata"]["generation"] + changed
        _check(found)
        return self._commit("MODIFIED", (plural, namespace, name), found)

    def set_status(self, plural: str, namespace: str, name: str, status: Manifest) -> None:
        found = self.objects.get((plural, namespace, name))
        if found is not None and found.get("status") != status:
            self.replace(plural, namespace, {**found, "status": status})

    def delete(self, plural: str, namespace: str, name: str, options: Manifest) -> None:
        found = self.find(plural, namespace, name)
        wanted = (options.get("preconditions") or {}).get("resourceVersion")
        if wanted is not None and wanted != found["metadata"]["resourceVersion"]:
            message = f"Precondition failed: resourceVersion {wanted} is not the newest"
            raise Failure(409, "Conflict", message, name)
        self._commit("DELETED", (plural, namespace, name), found)

    def apply(
        self, plural: str, namespace: str, name: str, given: Manifest, manager: str, force: bool
    ) -> Manifest:
        """Server-side apply, as KEP 555 has it."""
        if not manager:
            raise Failure(400, "BadRequest", "fieldManager is required for apply patch")
        key = (plural, namespace, name)
        old = self.objects.get(key)
        wanted = leaves({k: v for k, v in given.items() if k not in ("apiVersion", "kind")})
        wanted = {path: v for path, v in wanted.items() if path not in _IDENTITY}
        managers = managers_of(old) if old else {}
        merged = copy.deepcopy(old) if old else {k: given[k] for k in ("apiVersion", "kind")}
        merged.setdefault("metadata", {"name": name})
        conflicts = [
            (other, path)
            for other, theirs in managers.items()
            if other != manager
            for path in theirs & wanted.keys()
            if read(merged, path) != wanted[path]
        ]
        if conflicts and not force:
            said = "\n".join(f'conflict with "{other}": {show(path)}' for other, path in conflicts)
            many = f"Apply failed with {len(conflicts)} conflict(s): {said}"
            raise Failure(409, "Conflict", many, name)
        others = set().union(*(v for k, v in managers.items() if k != manager), set())
        for path in managers.get(manager, set()) - wanted.keys() - others:
            drop(merged, path)
        for path, value in wanted.items():
            write(merged, path, value)
        for other, path in conflicts:
            managers[other] -= {path}
        managers[manager] = set(wanted)
        if old is None:
            merged = self._fresh(namespace, merged)
            put_managers(merged, managers)
            return self._commit("ADDED", key, merged)
        put_managers(merged, managers)
        if merged == old:
            return old
        return self.replace(plural, namespace, merged)


_IDENTITY = {("metadata", "name"), ("metadata", "namespace")}


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, dict) and value:
        return {p: v for k, one in value.items() for p, v in leaves(one, (*path, k)).items()}
    if isinstance(value, list) and path[-1] in BY_NAME and value:
        return {
            p: v for one in value for p, v in leaves(one, (*path, f"name={one['name']}")).items()
        }
    return {path: value}


def show(path: tuple[str, ...]) -> str:
    return "." + ".".join(path)


def step(value: Any, part: str, *, make: bool = False) -> Any:
    if isinstance(value, list):
        name = part.removeprefix("name=")
        found = next((one for one in value if one.get("name") == name), None)
        if found is None and make:
            found = {"name": name}
            value.append(found)
        return found
    if not isinstance(value, dict):
        return None
    if make and part not in value:
        value[part] = [] if part in BY_NAME else {}
    return value.get(part)


def read(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        value = step(value, part)
    return value


def write(value: Any, path: tuple[str, ...], new: Any) -> None:
    for part in path[:-1]:
        value = step(value, part, make=True)
    value[path[-1]] = copy.deepcopy(new)


def drop(value: Any, path: tuple[str, ...]) -> None:
    parent = read(value, path[:-1])
    if not isinstance(parent, dict):
        return
    parent.pop(path[-1], None)
    above = read(value, path[:-2])
    if isinstance(above, list) and path[-1] == "name":
        above.remove(parent)


def managers_of(found: Manifest) -> dict[str, set[tuple[str, ...]]]:
    return {
        entry["manager"]: {tuple(json.loads(path)) for path in entry["fieldsV1"]}
        for entry in found["metadata"].get("managedFields", [])
    }


def put_managers(found: Manifest, managers: dict[str, set[tuple[str, ...]]]) -> None:
    found["metadata"]["managedFields"] = [
        {
            "manager": name,
            "operation": "Apply",
            "apiVersion": found["apiVersion"],
            "fieldsType": "FieldsV1",
            "fieldsV1": {json.dumps(path): {} for path in sorted(paths)},
        }
        for name, paths in sorted(managers.items())
        if paths
    ]


def _check(found: Manifest) -> None:
    said = problems(found)
    if said:
        name = found["metadata"]["name"]
        raise Failure(422, "Invalid", f"{found['kind']} {name!r} is invalid: {said}", name)


def app(api: Api) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await _answer(api, request)
        except Failure as error:
            api.calls.append((request.method, request.path, error.status))
            return web.json_response(error.body, status=error.status)

    found = web.Application(client_max_size=1 << 24)
    found.router.add_route("*", "/{path:.*}", answer)
    return found


async def _answer(api: Api, request: web.Request) -> web.StreamResponse:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Failure(401, "Unauthorized", "Unauthorized")
    prefix, _, rest = request.path.partition("/namespaces/")
    namespace, plural, *more = rest.split("/")
    if plural not in GROUPS.get(prefix, {}):
        raise Failure(404, "NotFound", "the server could not find the requested resource")
    if namespace not in api.namespaces and request.method in ("POST", "PATCH"):
        raise Failure(404, "NotFound", f'namespaces "{namespace}" not found', "")
    for fault in list(api.faults):
        if fault[:2] == (request.method, plural):
            api.faults.remove(fault)
            raise Failure(fault[2], "InternalError", "a fault that the test asked for")
    raw = await request.read()
    given: Manifest = json.loads(raw) if raw else {}
    name = more[0] if more else ""
    if more[1:] == ["log"]:
        return web.Response(text=api.logs.get(name, ""))
    query = request.query
    match request.method:
        case "GET" if query.get("watch"):
            return await _watch(api, request, plural)
        case "GET" if name:
            found = api.find(plural, namespace, name)
        case "GET":
            items = api.list(plural, namespace, query.get("labelSelector", ""))
            found = {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}
        case "POST":
            found = api.create(plural, namespace, given)
        case "PUT":
            found = api.replace(plural, namespace, given)
        case "PATCH" if request.content_type == "application/apply-patch+yaml":
            manager, force = query.get("fieldManager", ""), query.get("force") == "true"
            found = api.apply(plural, namespace, name, given, manager, force)
        case "DELETE":
            api.delete(plural, namespace, name, given)
            found = {"kind": "Status", "status": "Success"}
        case _:
            raise Failure(415, "UnsupportedMediaType", f"{request.method} {request.content_type}")
    api.calls.append((request.method, request.path, 200))
    return web.json_response(found)


async def _watch(api: Api, request: web.Request, plural: str) -> web.StreamResponse:
    since = int(request.query.get("resourceVersion") or 0)
    out = web.StreamResponse(headers={"Content-Type": "application/json"})
    await out.prepare(request)
    while True:
        changed = api.changed
        for version, event, kind, found in list(api.events):
            if kind == plural and version > since:
                line = json.dumps({"type": event, "object": found})
                await out.write(f"{line}\n".encode())
                since = version
        await changed.wait()


@contextmanager
def in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
