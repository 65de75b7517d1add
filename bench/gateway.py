"""The gateway beside nginx and beside nothing: what standing in front of an engine costs.

All processes run here, on the same cores as the load, so absolute figures are pessimistic. The
engine answers at once. Latency: 100 requests/s, one at a time per tick; throughput: 16 clients.
Each way is measured in turns of a few rounds, and the median round counts. On a busy machine look
at the CPU time of a request, and at the ratio to nginx in the same run.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
import uvloop

from trainyard import process
from trainyard.serving.gateway_config import GatewayConfig, Routes, Variant

BODY = {"model": "m", "messages": [{"role": "user", "content": "a question of some length " * 8}]}
TOKEN = "0123456789abcdef-admin"
ROUNDS = 5


@contextmanager
def running(program: list[str], port: int) -> Iterator[int]:
    """A process that listens, by its id."""
    child = subprocess.Popen(program, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not process.port_in_use(port):
            if time.monotonic() > end or child.poll() is not None:
                raise RuntimeError(f"{program[0]} did not start")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        child.wait()


def nginx(folder: Path, port: int, engine: int) -> list[str]:
    """One worker, as our gateway has one process; keep-alive to the engine, no buffering."""
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 64; }}
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
    )
    path = shutil.which("nginx") or "/usr/sbin/nginx"
    return [path, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]


async def latencies(session: aiohttp.ClientSession, url: str, count: int) -> list[float]:
    """Seconds of `count` requests, begun 10 ms apart."""
    found = []

    async def one() -> None:
        began = time.perf_counter()
        async with session.post(url + "/v1/chat/completions", json=BODY) as answer:
            await answer.read()
            assert answer.status == 200, answer.status
        found.append(time.perf_counter() - began)

    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    return found


async def throughput(
    session: aiohttp.ClientSession, url: str, seconds: float, pid: int
) -> tuple[float, float]:
    """Requests per second, and CPU milliseconds of process `pid` per request."""
    before = cpu_s(pid)
    count, end = 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end:
            async with session.post(url + "/v1/chat/completions", json=BODY) as answer:
                await answer.read()
                assert answer.status == 200, answer.status
            count += 1

    await asyncio.gather(*(client() for _ in range(16)))
    return count / seconds, 1e3 * (cpu_s(pid) - before) / count


async def sse_delays(session: aiohttp.ClientSession, url: str) -> list[float]:
    """Seconds from the engine's sending of each event to its arrival here."""
    found = []
    async with session.post(url + "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                found.append(time.time() - json.loads(line[6:])["sent"])
    return found


async def weight_changes(session: aiohttp.ClientSession, admin: str) -> list[float]:
    found = []
    for count in range(20):
        began = time.perf_counter()
        async with session.post(
            f"{admin}/-/weight",
            json={"weight": count},
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as answer:
            assert answer.status == 200, await answer.text()
        found.append(time.perf_counter() - began)
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    root = psutil.Process(pid)
    family = [root, *root.children()]
    return sum(one.cpu_times().user + one.cpu_times().system for one in family)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


async def measure(
    urls: dict[str, str], pids: dict[str, int], admin: str, count: int, seconds: float
) -> dict[str, float]:
    p50: dict[str, list[float]] = {name: [] for name in urls}
    p99: dict[str, list[float]] = {name: [] for name in urls}
    rate: dict[str, list[float]] = {name: [] for name in urls}
    cpu: dict[str, list[float]] = {name: [] for name in urls}
    sse: dict[str, list[float]] = {name: [] for name in urls}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        for url in urls.values():
            await latencies(session, url, 50)
        for _ in range(ROUNDS):
            for name, url in urls.items():
                found = await latencies(session, url, count)
                p50[name].append(quantile(found, 0.5))
                p99[name].append(quantile(found, 0.99))
            for name, url in urls.items():
                per_s, cpu_ms = await throughput(session, url, seconds, pids[name])
                rate[name].append(per_s)
                cpu[name].append(cpu_ms)
                sse[name] += await sse_delays(session, url)
        weights = await weight_changes(session, admin)
    median = statistics.median
    print(
        f"{'way':<8} {'p50 ms':>8} {'p99 ms':>8} {'req/s, 16 clients':>18} "
        f"{'CPU ms a request':>17} {'event delay ms':>15}"
    )
    for name in urls:
        print(
            f"{name:<8} {1e3 * median(p50[name]):8.2f} {1e3 * median(p99[name]):8.2f} "
            f"{median(rate[name]):18.0f} {median(cpu[name]):17.3f} {1e3 * median(sse[name]):15.2f}"
        )
    added = [a - b for a, b in zip(p50["gateway"], p50["direct"], strict=True)]
    added99 = [a - b for a, b in zip(p99["gateway"], p99["direct"], strict=True)]
    keys = {
        "added_p50_ms": 1e3 * median(added),
        "added_p99_ms": 1e3 * median(added99),
        "requests_per_s": median(rate["gateway"]),
        "direct_requests_per_s": median(rate["direct"]),
        "cpu_ms_per_request": median(cpu["gateway"]),
        "weight_change_ms": 1e3 * median(weights),
        "sse_delay_ms": 1e3 * quantile(sse["gateway"], 0.99),
    }
    if "nginx" in urls:
        keys["nginx_requests_per_s"] = median(rate["nginx"])
        keys["nginx_cpu_ms_per_request"] = median(cpu["nginx"])
        shares = zip(rate["gateway"], rate["nginx"], strict=True)
        keys["ratio_to_nginx"] = median([ours / its for ours, its in shares])
        nginx_added = zip(p50["nginx"], p50["direct"], strict=True)
        keys["nginx_added_p50_ms"] = 1e3 * median([a - b for a, b in nginx_added])
    return keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="requests per latency round")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a throughput round")
    given = parser.parse_args()
    engine, port, admin, other = (process.free_port() for _ in range(4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = GatewayConfig(
            name="m",
            port=port,
            admin_port=admin,
            folder=folder,
            token=TOKEN,
            replay_token=TOKEN,
        )
        (folder / "config.json").write_text(config.model_dump_json())
        variant = Variant(url=f"http://127.0.0.1:{engine}", model="m@1", digest="1" * 64)
        routes = Routes(champion=variant, canary=variant, weight=5)
        config.routes_file.write_text(routes.model_dump_json())
        stub = [sys.executable, "-m", "bench.stub_engine", str(engine)]
        ours = [sys.executable, "-m", "trainyard.serving.gateway", "--config"]
        urls = {"direct": f"http://127.0.0.1:{engine}", "gateway": f"http://127.0.0.1:{port}"}
        with (
            running(stub, engine) as stub_pid,
            running([*ours, str(folder / "config.json")], port) as gateway_pid,
        ):
            pids = {"direct": stub_pid, "gateway": gateway_pid}
            if shutil.which("nginx") or os.access("/usr/sbin/nginx", os.X_OK):
                urls["nginx"] = f"http://127.0.0.1:{other}"
                with running(nginx(folder, other, engine), other) as pids["nginx"]:
                    keys = _measured(urls, pids, admin, given)
            else:
                print("nginx is not installed: no comparison")
                keys = _measured(urls, pids, admin, given)
    print(json.dumps({name: round(value, 3) for name, value in keys.items()}))


def _measured(
    urls: dict[str, str], pids: dict[str, int], admin: int, given: argparse.Namespace
) -> dict[str, float]:
    address = f"http://127.0.0.1:{admin}"
    return uvloop.run(measure(urls, pids, address, given.count, given.seconds))


if __name__ == "__main__":
    main()
