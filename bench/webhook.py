"""Signed pushes at a steady rate against the webhook, with a real Prefect server behind it.

Every push touches one recipe of its own, so each must become exactly one run. One delivery in five
comes twice, one in ten again under another id, and neighbours swap places. Time is counted from
when a delivery was due, not from when it was sent. Server, service, git and load share the cores.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import yaml

from deployments.throwaway import a_database, a_server, running, wait_for
from trainyard import process

SECRET = "the-word-of-this-bench"
BRANCH = "refs/heads/main"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=600)
    parser.add_argument("--rate", type=float, default=60, help="pushes per second")
    parser.add_argument("--repositories", type=int, default=4)
    given = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        database = stack.enter_context(a_database(root))
        api = stack.enter_context(a_server(root, database))
        deploy(api)
        pushes = list(repositories(root, given.pushes, given.repositories))
        service = stack.enter_context(a_service(root, api, given.repositories))
        keys = asyncio.run(load(f"{service}/hooks/bench", pushes, given.rate))
        begin = time.monotonic()
        wait_until_idle(service)
        keys["drained_s"] = round(time.monotonic() - begin, 1)
        keys |= count(api, {recipe for _, _, recipe in pushes})
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"{'PostgreSQL' if database else 'SQLite'}, commit {commit()}")  # fmt: skip
    print(f"{given.pushes} pushes to {given.repositories} repositories at {given.rate:g}/s")
    for name, value in keys.items():
        print(f"  {name:<14} {value}")
    print(json.dumps(keys))


def repositories(root: Path, pushes: int, count: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Make the repositories; yield (repository, payload, recipe) per push, in their order."""
    recipe = Path("recipes/quickstart.yaml").read_text()
    for index in range(count):
        bare, name = root / f"{index}.git", f"bench/{index}"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
        paths = [f"recipes/r{index}-{n}.yaml" for n in range(pushes // count)]
        shas = _commits(bare, recipe, paths)
        (root / f"{index}.first").write_text(shas[0])
        for path, before, after in zip(paths, shas, shas[1:], strict=False):
            payload = {"ref": BRANCH, "before": before, "after": after,
                       "repository": {"full_name": name}, "commits": []}  # fmt: skip
            yield name, payload, f"{name}:{path}"


def _commits(bare: Path, recipe: str, paths: list[str]) -> list[str]:
    """All recipes in the first commit, then one commit per recipe that changes it."""
    texts = [[(path, recipe) for path in paths]]
    texts += [[(path, f"{recipe}# changed\n")] for path in paths]
    lines = []
    for number, files in enumerate(texts):
        lines.append(
            f"commit {BRANCH}\ncommitter B <b@b> {1_700_000_000 + number} +0000\ndata 1\nc\n"
        )
        for path, text in files:
            lines.append(f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}\n")
    stream = "".join(lines).encode()
    subprocess.run(["git", "-C", str(bare), "fast-import", "--quiet"], input=stream, check=True)
    return git(bare, "rev-list", "--reverse", BRANCH).split()


async def load(
    url: str, pushes: list[tuple[str, dict[str, Any], str]], rate: float
) -> dict[str, Any]:
    dice = random.Random(7)
    deliveries = []
    for number, (_, payload, _) in enumerate(interleaved(pushes)):
        body = json.dumps(payload).encode()
        deliveries.append((body, f"d{number}"))
        deliveries += [(body, f"d{number}")] if dice.random() < 0.2 else []
        deliveries += [(body, f"again{number}")] if dice.random() < 0.1 else []
    for number in range(0, len(deliveries) - 1, 3):
        deliveries[number : number + 2] = deliveries[number : number + 2][::-1]
    many = len(deliveries) / len(pushes)
    took: list[float] = []
    codes: Counter[int] = Counter()
    begin = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200)) as session:

        async def send(number: int, body: bytes, id_: str) -> None:
            due = begin + number / (rate * many)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            async with session.post(url, data=body, headers=headers(body, id_)) as reply:
                codes[reply.status] += 1
            took.append(time.monotonic() - due)

        await asyncio.gather(*(send(n, *one) for n, one in enumerate(deliveries)))
    seconds = time.monotonic() - begin
    took.sort()
    return {
        "pushes_per_s": round(codes[202] / seconds, 1),
        "deliveries_per_s": round(len(deliveries) / seconds, 1),
        "p50_s": round(took[len(took) // 2], 3),
        "p95_s": round(took[int(len(took) * 0.95)], 3),
        "max_s": round(took[-1], 3),
        "accepted": codes[202],
        "known_already": codes[200],
        "other_answers": sum(codes.values()) - codes[202] - codes[200],
    }


def interleaved(
    pushes: list[tuple[str, dict[str, Any], str]],
) -> list[tuple[str, dict[str, Any], str]]:
    """Take from each repository in turn."""
    by_name: dict[str, list[tuple[str, dict[str, Any], str]]] = {}
    for push in pushes:
        by_name.setdefault(push[0], []).append(push)
    return [push for turn in zip(*by_name.values(), strict=True) for push in turn]


def headers(body: bytes, id_: str) -> dict[str, str]:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": id_,
        "X-Hub-Signature-256": f"sha256={signature}",
    }


def count(api: str, recipes: set[str]) -> dict[str, int]:
    """How many recipes have no run, and how many runs are more than one per recipe."""
    found: Counter[str] = Counter()
    for offset in range(0, 1_000_000, 200):
        body = {"limit": 200, "offset": offset, "sort": "ID_DESC"}
        rows = httpx.post(f"{api}/flow_runs/filter", json=body, timeout=60).json()
        for row in rows:
            name, _, path = str(row["idempotency_key"]).split(":")
            found[f"{name}:{path}"] += 1
        if not rows:
            break
    runs = sum(found.values())
    return {"runs": runs, "lost": len(recipes - set(found)), "duplicates": runs - len(found)}


def deploy(api: str) -> None:
    flow = httpx.post(f"{api}/flows/", json={"name": "release"}, timeout=60).json()["id"]
    body = {"name": "pushed", "flow_id": flow, "entrypoint": "flows.release.release"}
    httpx.post(f"{api}/deployments/", json=body, timeout=60).raise_for_status()


@contextmanager
def a_service(root: Path, api: str, repositories: int) -> Iterator[str]:
    port = process.free_port()
    hook = {
        "provider": "github",
        "secrets": ["env:BENCH_SECRET"],
        "api": "http://127.0.0.1:9",  # nobody: statuses wait, as they do while a server is down
        "api_token": "env:BENCH_SECRET",
        "repositories": [
            {"name": f"bench/{n}", "url": str(root / f"{n}.git")} for n in range(repositories)
        ],
    }
    config = {"port": port, "prefect_api": api, "deliveries_per_minute": 100_000,
              "poll_s": 3600, "watch_s": 3600, "hooks": {"bench": hook}}  # fmt: skip
    (root / "webhook.yaml").write_text(yaml.safe_dump(config))
    tips = {n: git(root / f"{n}.git", "rev-parse", BRANCH) for n in range(repositories)}
    for n in tips:  # the service starts before the pushes
        git(root / f"{n}.git", "update-ref", BRANCH, (root / f"{n}.first").read_text())
    command = [sys.executable, "-m", "trainyard", "webhook", "--config",
               str(root / "webhook.yaml"), "--home", str(root / "home")]  # fmt: skip
    env = os.environ | {"BENCH_SECRET": SECRET}
    with running(command, env, root / "service.log"):
        wait_for(f"http://127.0.0.1:{port}/health")
        for n, tip in tips.items():
            git(root / f"{n}.git", "update-ref", BRANCH, tip)
        yield f"http://127.0.0.1:{port}"


def wait_until_idle(service: str) -> None:
    end = time.monotonic() + 900
    while time.monotonic() < end:
        found = httpx.get(f"{service}/health", timeout=60).json()
        if not found.get("jobs_waiting"):
            return
        time.sleep(0.5)
    raise SystemExit("deliveries still wait after 15 minutes")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit() -> str:
    return git(Path(), "rev-parse", "--short", "HEAD")


if __name__ == "__main__":
    main()
