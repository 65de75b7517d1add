"""One stable URL for a model name: `python -m trainyard.serving.gateway --config FILE`.

Prints `ready URL` once it serves and leaves its ports in gateway.ready.json. Restarted, it goes on
with the routes it had, except that a canary whose lease has run out gets no traffic.
"""

import argparse
import asyncio
import contextlib
import gc
import resource
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import uvloop
from aiohttp import hdrs, web

from trainyard import files
from trainyard.errors import InputError, TrainyardError
from trainyard.serving.gateway_admin import Admin, Feedback
from trainyard.serving.gateway_config import GatewayConfig, load_routes
from trainyard.serving.gateway_log import Journal
from trainyard.serving.gateway_proxy import PATHS, Proxy, problem

READY_FILE = "gateway.ready.json"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def _not_here(request: web.BaseRequest) -> web.Response:
    return problem(404, f"{request.method} {request.path} is not offered here")


def public_server(proxy: Proxy) -> web.Server:
    """A table of paths: an application's router and signals cost each request 0.1 ms.

    A client that hangs up cancels its handler, and with it the engine's work.
    """

    async def health(_request: web.BaseRequest) -> web.Response:
        if proxy.current().champion is None:
            return problem(503, "no champion is being served")
        return web.json_response({"status": "ok"})

    async def models(_request: web.BaseRequest) -> web.Response:
        routes = proxy.current()
        row = {"id": proxy.config.name, "object": "model", "owned_by": "trainyard"}
        if routes.champion is not None:
            row["version"] = routes.champion.digest
        return web.json_response({"object": "list", "data": [row] if routes.champion else []})

    offered: dict[tuple[str, str], Handler] = {("POST", path): proxy.complete for path in PATHS}
    offered["POST", "/v1/feedback"] = Feedback(proxy).take
    for method in ("GET", "HEAD"):
        offered[method, "/v1/models"] = models
        offered[method, "/health"] = health

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await offered.get((request.method, request.path), _not_here)(request)

    return web.Server(
        handle,
        request_factory=partial(
            web.BaseRequest,
            loop=asyncio.get_running_loop(),
            client_max_size=int(proxy.config.max_body_mib * 2**20),
        ),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=75,
        lingering_time=2.0,
    )


async def _listen(
    runner: web.BaseRunner, host: str, port: int, tls: ssl.SSLContext | None = None
) -> int:
    """Serve on `port`, or on a free one for 0; return it."""
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=tls, backlog=2048, shutdown_timeout=10)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise InputError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror}; "
            "set another deploy.port or stop what listens there"
        ) from error
    return int(runner.addresses[0][1])


async def serve(config: GatewayConfig) -> None:
    routes, journal = load_routes(config.routes_file), Journal()
    journal.metrics.show(routes)
    proxy = Proxy(config, routes, journal)
    tls = None
    if config.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            tls.load_cert_chain(config.tls_cert, config.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"the gateway cannot use certificate {config.tls_cert} with key {config.tls_key}: "
                f"{error.strerror or error}; write deploy.tls anew"
            ) from error
    async with contextlib.AsyncExitStack() as stack:
        admin = web.AppRunner(Admin(proxy).app(), access_log=None)
        stack.push_async_callback(admin.cleanup)
        admin_port = await _listen(admin, config.admin_host, config.admin_port)
        await stack.enter_async_context(proxy.running())
        public = web.ServerRunner(public_server(proxy))
        stack.push_async_callback(public.cleanup)
        port = await _listen(public, config.host, config.port, tls)
        shown = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        url = f"{'https' if tls else 'http'}://{shown}:{port}"
        ready = {"url": url, "admin_url": f"http://127.0.0.1:{admin_port}", "boot": journal.boot}
        files.write_json(config.folder / READY_FILE, ready)
        print(f"ready {url}", flush=True)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stopped.wait()


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    parser = argparse.ArgumentParser(prog="trainyard.serving.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        config = GatewayConfig.read(arguments.config)
        _allow_many_connections()
        # requests leave few cycles behind; looking for them after every seventh is a cost for each
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        uvloop.run(serve(config))
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
