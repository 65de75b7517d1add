"""What clients do to the gateway: bad requests, large bodies, slow senders, overload."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import aiohttp
import httpx
import psutil
import pytest

from tests.services.gateway.conftest import (
    BODY,
    CHAT,
    Gateway,
)

SLOW_CLIENTS = int(os.environ.get("TRAINYARD_SLOW_CLIENTS", "1500"))
"""Connections that send nothing more; this process and the gateway need a file for each."""


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object, not list"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "cannot be passed on"),
        (b'{"a": "\\ud83d"}', 400, "not JSON"),
        (b'{"model": "other"}', 404, "model 'other' is not here; this is 'm'"),
        (b'{"model": ["m"]}', 404, "is not here"),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', 413, "at most 1048576"),
    ],
    ids=[
        "cut",
        "empty",
        "list",
        "bytes",
        "deep",
        "nested",
        "half-pair",
        "other",
        "list-model",
        "big",
    ],
)
def test_a_bad_request_gets_one_clear_sentence(
    gateway: Gateway, engines: Callable[..., str], body: bytes, status: int, says: str
) -> None:
    gateway.start(max_body_mib=1)
    gateway.route(engines())
    found = gateway.ask(body)
    assert found.status_code == status
    assert says in found.json()["error"]["message"]
    assert gateway.ask().status_code == 200
    assert [r["code"] for r in gateway.records("champion")] == [200]


def test_a_body_of_100_mb_without_a_length_is_cut_short(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(max_body_mib=1)
    gateway.route(engines())

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * (1 << 20)

    with contextlib.suppress(httpx.WriteError):  # it may hang up while we are still sending
        assert httpx.post(gateway.url + CHAT, content=chunks()).status_code == 413
    assert gateway.process is not None
    assert psutil.Process(gateway.process.pid).memory_info().rss < 200 << 20
    assert gateway.ask().status_code == 200


def test_slow_clients_hold_up_nobody(gateway: Gateway, engines: Callable[..., str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(SLOW_CLIENTS, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 200)), hard))
    gateway.start(body_timeout_s=20.0, max_inflight=count + 10)
    gateway.route(engines())
    host, port = gateway.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + b"{"
    slow = []
    try:
        for _ in range(count):
            slow.append(socket.create_connection((host, int(port)), timeout=60))
            slow[-1].sendall(head)
        assert gateway.ask().status_code == 200
        assert gateway.process is not None
        assert psutil.Process(gateway.process.pid).memory_info().rss < (150 + count / 20) * 2**20
        for connection in slow:
            connection.settimeout(120)
            assert b" 408 " in connection.recv(100)
    finally:
        for connection in slow:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert gateway.ask().status_code == 200


def test_tenfold_overload_is_shed_and_survived(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(max_inflight=20, idle_timeout_s=20)
    gateway.route(engines(delay_s=0.1))

    async def flood() -> Counter[int]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> int:
                async with session.post(gateway.url + CHAT, json=BODY) as answer:
                    if answer.status == 429:
                        assert answer.headers["Retry-After"] == "1"
                    await answer.read()
                    return answer.status

            return Counter(await asyncio.gather(*(one() for _ in range(200))))

    found = asyncio.run(flood())
    assert set(found) <= {200, 429}
    assert found[200] >= 20
    assert gateway.ask().status_code == 200


def test_requests_in_progress_are_finished_before_the_gateway_ends(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(idle_timeout_s=20)
    gateway.route(engines(delay_s=1.0))
    assert gateway.process is not None
    pid = gateway.process.pid

    async def ask_then_stop() -> int:
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(session.post(gateway.url + CHAT, json=BODY))
            await asyncio.sleep(0.4)
            os.kill(pid, signal.SIGTERM)
            async with await task as answer:
                return answer.status

    assert asyncio.run(ask_then_stop()) == 200


def test_a_client_that_asks_first_is_told_to_go_on(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    """As curl does with a long body."""
    gateway.start()
    gateway.route(engines())
    body = json.dumps(BODY | {"user": "x" * (2 << 20)}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as client:
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
