"""The CPU server from loaded model to clean exit: load, serve, drain."""

import argparse
import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import torch
import uvloop
from aiohttp import web

from trainyard.errors import InputError
from trainyard.serving.server_engine import Engine
from trainyard.serving.server_http import Api
from trainyard.serving.server_metrics import Metrics
from trainyard.serving.server_model import Model
from trainyard.serving.server_sequence import Served

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, adapters: Mapping[str, Path], bound: socket.socket) -> int:
    torch.set_num_threads(arguments.threads)
    model = Model(
        arguments.base,
        arguments.name,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    served = {name: model.load(name, folder) for name, folder in adapters.items()}
    log.info("loaded %s in %s with %d adapters", arguments.base, model.dtype, len(served))
    return uvloop.run(_serve(arguments, model, served, bound))


async def _serve(
    arguments: argparse.Namespace, model: Model, served: Mapping[str, Served], bound: socket.socket
) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    metrics = Metrics(model.base.name)
    engine = Engine(
        model, metrics, loop, max_batch=arguments.max_batch, max_queue=arguments.max_queue
    )
    engine.served.update(served)
    engine.start()
    admin = arguments.adapter_admin or _is_loopback(arguments.host)
    runner = web.AppRunner(
        Api(engine, metrics, admin=admin).app(),
        access_log=None,
        handler_cancellation=True,  # a client that hangs up frees its place
        shutdown_timeout=2.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, bound, backlog=1024).start()
    except OSError as error:
        raise InputError(f"cannot listen on {arguments.host}: {error.strerror}") from error
    print(f"ready {_url(bound)}", flush=True)
    await stopped.wait()
    log.info("stopping: finishing what runs, for at most %g s", arguments.drain_s)
    finished = await engine.drain(arguments.drain_s)
    await runner.cleanup()
    log.info("stopped" if finished else "stopped with unfinished requests")
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
