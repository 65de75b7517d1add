import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from aiohttp import web

from tests.services.kubernetes.api_server import TOKEN, Api, Manifest, app, in_thread
from tests.services.kubernetes.cluster import Gateway, Nodes

NAMESPACE = "models-dev"


class FakeCluster(NamedTuple):
    loop: asyncio.AbstractEventLoop
    api: Api
    nodes: Nodes
    gateway: Gateway
    url: str
    """Where users reach the Gateway."""

    def apply(self, manifest: Manifest, manager: str, *, force: bool = False) -> None:
        """Server-side apply of an HTTPRoute by somebody, in the server's own thread."""

        async def call() -> None:
            name = manifest["metadata"]["name"]
            self.api.apply("httproutes", NAMESPACE, name, manifest, manager, force)

        asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with running(tmp_path) as found:
        yield found


@contextmanager
def running(place: Path) -> Iterator[FakeCluster]:
    """An API server with controllers and real processes, named by KUBECONFIG."""
    folder = place / "cluster"
    folder.mkdir()
    with in_thread() as loop, pytest.MonkeyPatch.context() as patch:
        ready: list[FakeCluster] = []

        async def serve(started: asyncio.Event, stop: asyncio.Event) -> None:
            api = Api({NAMESPACE})
            nodes, gateway = Nodes(api, folder), Gateway(api)
            runners = [web.AppRunner(one, shutdown_timeout=0.1) for one in (app(api), gateway.app)]
            urls = []
            for runner in runners:
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            tasks = [asyncio.create_task(nodes.run()), asyncio.create_task(gateway.run())]
            ready.append(FakeCluster(loop, api, nodes, gateway, urls[1]))
            _write_kubeconfig(place / "kubeconfig", urls[0])
            started.set()
            await stop.wait()
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for runner in runners:
                await runner.cleanup()
            broken = [d for d in done if not isinstance(d, asyncio.CancelledError)]
            assert not broken, broken

        started, stop = asyncio.Event(), asyncio.Event()
        served = asyncio.run_coroutine_threadsafe(serve(started, stop), loop)
        served.add_done_callback(lambda _: loop.call_soon_threadsafe(started.set))
        asyncio.run_coroutine_threadsafe(started.wait(), loop).result(10)
        if served.done():
            served.result()
        patch.setenv("KUBECONFIG", str(place / "kubeconfig"))
        patch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield ready[0]
        loop.call_soon_threadsafe(stop.set)
        served.result(20)


def _write_kubeconfig(path: Path, url: str) -> None:
    named = {"name": "fake"}
    found = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [{**named, "cluster": {"server": url}}],
        "users": [{**named, "user": {"token": TOKEN}}],
        "contexts": [{**named, "context": {"cluster": "fake", "user": "fake"}}],
    }
    path.write_text(yaml.safe_dump(found))
