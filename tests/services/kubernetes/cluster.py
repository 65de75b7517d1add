"""What acts on the API server in tests: controllers, a kubelet with real processes, and a Gateway.

Each pod is a stub engine (bench/stub_engine.py) and the real gateway beside it, with the config and
the routes of the Secret that the pod mounts; ports are chosen here, as a node would not. The
Gateway reads every HTTPRoute and sends real requests by its weights.
"""

import asyncio
import json
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.services.kubernetes.api_server import Api, Manifest
from trainyard.process import free_port

_LOOK_S = 0.05


@dataclass
class Pod:
    name: str
    slot: str
    namespace: str
    folder: Path
    engine_args: list[str]
    labels: dict[str, str]
    engine: subprocess.Popen[bytes] | None = None
    gateway: subprocess.Popen[bytes] | None = None
    ports: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False

    @property
    def log(self) -> str:
        path = self.folder / "engine.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return lines[-1] if lines else ""


class Nodes:
    """Deployments become pods, pods become processes, and what they do becomes status."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder
        self.pods: dict[str, list[Pod]] = {}
        """By uid of the Deployment."""

        self.quota: str = ""
        """Why no pod may be made, if so."""

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            try:
                while True:
                    await self._reconcile(session)
                    await asyncio.sleep(_LOOK_S)
            finally:
                for pods in self.pods.values():
                    for pod in pods:
                        _kill(pod)

    async def _reconcile(self, session: aiohttp.ClientSession) -> None:
        there = {
            found["metadata"]["uid"]: found
            for (plural, _, _), found in list(self._api.objects.items())
            if plural == "deployments"
        }
        for uid in set(self.pods) - set(there):
            for pod in self.pods.pop(uid):
                _kill(pod)
                self._forget(pod)
        for uid, found in there.items():
            await self._run_deployment(session, uid, found)

    async def _run_deployment(
        self, session: aiohttp.ClientSession, uid: str, found: Manifest
    ) -> None:
        wanted = found["spec"].get("replicas", 1)
        pods = self.pods.setdefault(uid, [])
        while len(pods) < wanted and not self.quota:
            pods.append(self._make(found, len(pods)))
        for pod in pods:
            await self._look_after(session, pod)
        available = sum(pod.ready for pod in pods)
        status: Manifest = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(pods),
            "availableReplicas": available,
        }
        if self.quota:
            status["conditions"] = [
                {"type": "ReplicaFailure", "status": "True", "message": self.quota}
            ]
        name, namespace = found["metadata"]["name"], found["metadata"]["namespace"]
        self._api.set_status("deployments", namespace, name, status)

    def _make(self, found: Manifest, number: int) -> Pod:
        metadata = found["metadata"]
        name = f"{metadata['name']}-{metadata['uid'][:5]}-{number}"
        template = found["spec"]["template"]
        engine = template["spec"]["containers"][0]
        pod = Pod(
            name=name,
            slot=metadata["name"],
            namespace=metadata["namespace"],
            folder=self._folder / name,
            engine_args=engine["args"],
            labels=template["metadata"]["labels"],
        )
        pod.folder.mkdir()
        self._api.create(
            "pods",
            pod.namespace,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": pod.labels},
                "spec": template["spec"],
            },
        )
        pod.ports = {"engine": free_port()}
        self._start_engine(pod)
        self._start_gateway(pod)
        return pod

    def _start_engine(self, pod: Pod) -> None:
        model, _, adapter = pod.engine_args[pod.engine_args.index("--lora-modules") + 1].partition(
            "="
        )
        with (pod.folder / "engine.log").open("wb") as log:
            pod.engine = subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.stub_engine", str(pod.ports["engine"])),
                    *("--model", model, "--behaviour", f"{adapter}/behaviour.json"),
                ],
                stdout=log,
                stderr=log,
            )

    def _start_gateway(self, pod: Pod) -> None:
        secret = self._api.find("secrets", pod.namespace, f"{pod.slot}-gateway")["stringData"]
        config, routes = json.loads(secret["gateway.json"]), json.loads(secret["routes.json"])
        config |= {"folder": str(pod.folder), "host": "127.0.0.1", "port": 0, "admin_port": 0}
        routes["champion"]["url"] = f"http://127.0.0.1:{pod.ports['engine']}"
        (pod.folder / "routes.json").write_text(json.dumps(routes))
        (pod.folder / "gateway.json").write_text(json.dumps(config))
        with (pod.folder / "gateway.log").open("wb") as log:
            pod.gateway = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trainyard.serving.gateway"),
                    *("--config", str(pod.folder / "gateway.json")),
                ],
                stdout=log,
                stderr=log,
            )

    async def _look_after(self, session: aiohttp.ClientSession, pod: Pod) -> None:
        assert pod.engine is not None
        if pod.engine.poll() is not None:
            pod.restarts += 1
            self._api.logs[pod.name] = pod.log
            self._start_engine(pod)
        pod.ready = await self._is_ready(session, pod)
        self._publish(pod)

    async def _is_ready(self, session: aiohttp.ClientSession, pod: Pod) -> bool:
        ready = pod.folder / "gateway.ready.json"
        if not ready.exists():
            return False
        urls = json.loads(ready.read_text())
        pod.ports["http"] = int(urls["url"].rpartition(":")[2])
        pod.ports["admin"] = int(urls["admin_url"].rpartition(":")[2])
        try:
            async with session.get(f"http://127.0.0.1:{pod.ports['engine']}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _publish(self, pod: Pod) -> None:
        ended = {"exitCode": 1, "reason": "Error"}
        container: Manifest = {
            "name": "engine",
            "restartCount": pod.restarts,
            "ready": pod.ready,
            "image": "stub",
            "imageID": "stub",
            "state": {"running": {}},
            **({"lastState": {"terminated": ended}} if pod.restarts else {}),
        }
        status = {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [container]}
        self._api.set_status("pods", pod.namespace, pod.name, status)
        if "admin" not in pod.ports:
            return
        for service, ports in ((pod.slot, ["http"]), (f"{pod.slot}-replicas", ["engine", "admin"])):
            found = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{service}-{pod.name[-7:]}",
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": "IPv4",
                "ports": [{"name": port, "port": pod.ports[port]} for port in ports],
                "endpoints": [
                    {
                        "addresses": ["127.0.0.1"],
                        "conditions": {"ready": pod.ready},
                        "targetRef": {"kind": "Pod", "name": pod.name},
                    }
                ],
            }
            name = found["metadata"]["name"]
            old = self._api.objects.get(("endpointslices", pod.namespace, name))
            if old is None:
                self._api.create("endpointslices", pod.namespace, found)
            elif old["endpoints"] != found["endpoints"]:
                old = {**old, "endpoints": found["endpoints"]}
                self._api.replace("endpointslices", pod.namespace, old)

    def _forget(self, pod: Pod) -> None:
        gone = [("pods", pod.name)]
        for service in (pod.slot, f"{pod.slot}-replicas"):
            gone.append(("endpointslices", f"{service}-{pod.name[-7:]}"))
        for plural, name in gone:
            if (plural, pod.namespace, name) in self._api.objects:
                self._api.delete(plural, pod.namespace, name, {})


def _kill(pod: Pod) -> None:
    for process in (pod.engine, pod.gateway):
        if process is not None:
            process.kill()
            process.wait()


class Gateway:
    """Takes every HTTPRoute, says so in its status, and sends requests by its weights."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.refuses = ""
        """Why routes are not accepted, if so."""

        self._copies: set[asyncio.Task[None]] = set()
        self.app = web.Application()
        self.app.cleanup_ctx.append(self._running)
        self.app.router.add_route("*", "/{path:.*}", self._forward)

    async def _running(self, _app: web.Application) -> Any:
        async with aiohttp.ClientSession() as self._session:
            yield

    async def run(self) -> None:
        while True:
            for (plural, namespace, name), found in list(self._api.objects.items()):
                if plural == "httproutes":
                    self._api.set_status(plural, namespace, name, self._status(found))
            await asyncio.sleep(_LOOK_S)

    def _status(self, found: Manifest) -> Manifest:
        generation = found["metadata"]["generation"]
        conditions = [
            {
                "type": kind,
                "status": "False" if self.refuses else "True",
                "reason": "Test",
                "message": self.refuses,
                "observedGeneration": generation,
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        parent = found["spec"]["parentRefs"][0]
        return {"parents": [{"parentRef": parent, "conditions": conditions}]}

    def _rule(self, request: web.Request) -> tuple[str, Manifest] | None:
        for (plural, namespace, _), found in self._api.objects.items():
            if plural != "httproutes":
                continue
            for rule in found["spec"]["rules"]:
                for match in rule["matches"]:
                    headers = match.get("headers", [])
                    if request.path.startswith(match["path"]["value"]) and all(
                        request.headers.get(one["name"]) == one["value"] for one in headers
                    ):
                        return namespace, rule
        return None

    def _address(self, namespace: str, backend: Manifest) -> str | None:
        ready = [
            f"http://127.0.0.1:{piece['ports'][0]['port']}"
            for piece in self._api.list(
                "endpointslices", namespace, f"kubernetes.io/service-name={backend['name']}"
            )
            if piece["endpoints"][0]["conditions"]["ready"]
        ]
        return random.choice(ready) if ready else None

    async def _forward(self, request: web.Request) -> web.Response:
        chosen = self._rule(request)
        if chosen is None:
            return web.Response(status=404)
        namespace, rule = chosen
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _OWN}
        body = await request.read()
        for filtered in rule.get("filters", []):
            for one in filtered.get("requestHeaderModifier", {}).get("set", []):
                headers[one["name"]] = one["value"]
            mirror = filtered.get("requestMirror")
            if mirror and random.random() * 100 < mirror.get("percent", 100):
                copied = self._address(namespace, mirror["backendRef"])
                task = asyncio.create_task(self._copy(copied, request.path, body, headers))
                self._copies.add(task)
                task.add_done_callback(self._copies.discard)
        backends = rule["backendRefs"]
        weights = [backend.get("weight", 1) for backend in backends]
        address = self._address(namespace, random.choices(backends, weights)[0])
        if address is None:
            return web.Response(status=503)
        async with self._session.request(
            request.method, address + request.path, data=body, headers=headers
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower().startswith("x-")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    async def _copy(self, address: str | None, path: str, body: bytes, headers: Any) -> None:
        if address is not None:
            async with self._session.post(address + path, data=body, headers=headers) as answer:
                await answer.read()


_OWN = {"host", "content-length", "transfer-encoding", "connection"}
