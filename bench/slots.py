"""Releases of several recipes that compete for a few GPUs, some of whose jobs are killed.

Everything is real but the GPUs and the jobs: a Prefect server, a process worker, dispatch with its
turns, locks. One recipe asks for most of the jobs, and asks first. Each job's program proves that
it is alone on its GPU; holders are killed with SIGKILL while they work. Waiting releases are
threads here, since each of them only waits.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from bench.stand_in import stand_in
from bench.webhook import commit
from deployments.throwaway import a_database, a_server, running
from tasks import dispatch

POOL = "bench"


class Load(NamedTuple):
    releases: int
    gpus: int
    recipes: int
    kills: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=50)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--recipes", type=int, default=5)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a job")
    given = Load(**vars(parser.parse_args()))
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        api = stack.enter_context(a_server(root, stack.enter_context(a_database(root))))
        settings = {PREFECT_API_URL: api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        stack.enter_context(temporary_settings(settings))
        keys = compete(root, given)
    print(f"{os.cpu_count()} cores, commit {commit()}: {given}")
    for name, value in keys.items():
        print(f"  {name:<16} {value}")
    print(json.dumps(keys))


def compete(root: Path, load: Load) -> dict[str, Any]:
    """Run the load on the server that PREFECT_API_URL names, and count."""
    log = root / "gpus.log"
    log.touch()
    deploy(load.gpus)
    with a_worker(root, load.gpus), a_killer(log, load) as killed:
        begin = time.monotonic()
        finished = release_all(log, load)
        seconds = round(time.monotonic() - begin, 1)
    names = recipes_of(load)
    found = read(log, names)
    return {
        "releases": load.releases,
        "finished": finished,
        "seconds": seconds,
        "killed": len(killed),
        "fairness": fairness(found.pop("starts"), Counter(names)),
        **found,
    }


def release_all(log: Path, load: Load) -> int:
    """Return how many releases finished."""
    with ThreadPoolExecutor(load.releases) as pool:
        # each in a copy of our context, where the server's address is
        ended = [
            pool.submit(copy_context().run, release, number, name, log, load)
            for number, name in enumerate(recipes_of(load))
        ]
        return sum(one.result() for one in ended)


def recipes_of(load: Load) -> list[str]:
    """The first recipe asks for more than half, before all others."""
    others = [f"recipe{1 + n % (load.recipes - 1)}" for n in range(load.releases * 2 // 5)]
    return ["flood"] * (load.releases - len(others)) + others


def release(number: int, recipe: str, log: Path, load: Load) -> bool:
    @flow(name="release", flow_run_name=f"{recipe} {number}")
    def parent() -> None:
        parameters = {"run": f"{recipe}-{number}", "log": str(log), "seconds": load.seconds}
        dispatch.run(f"stand-in/{POOL}", parameters, "train", recipe=recipe)

    time.sleep(number * 0.05)
    try:
        parent()
    except Exception as error:  # counted: a bench shows how many did not finish
        print(f"{recipe} {number}: {error}", file=sys.stderr)
        return False
    return True


def read(log: Path, names: list[str]) -> dict[str, Any]:
    """Count what the programs wrote: two on one GPU, jobs that ended never or twice, the order."""
    events = [line.split() for line in log.read_text().splitlines()]
    starts = [(float(at), run) for event, _, run, _, at in events if event != "end"]
    ends = Counter(run for event, _, run, _, _ in events if event == "end")
    return {
        "started": len(starts),
        "lost": sum(ends[f"{name}-{n}"] == 0 for n, name in enumerate(names)),
        "duplicates": sum(count - 1 for count in ends.values()),
        "double_booked": sum(e[0] == "double" for e in events) + overlaps(events),
        "starts": [run.rpartition("-")[0] for _, run in sorted(starts)],
    }


def overlaps(events: list[list[str]]) -> int:
    """How often a program started on a GPU before the one before it there had ended."""
    count, until = 0, dict[str, float]()
    ended = {(gpu, run, pid): float(at) for e, gpu, run, pid, at in events if e == "end"}
    for event, gpu, run, pid, at in sorted(events, key=lambda e: float(e[4])):
        if event == "start":
            count += float(at) < until.get(gpu, 0.0)
            until[gpu] = ended.get((gpu, run, pid), 0.0)
    return count


def fairness(order: list[str], wanted: Counter[str]) -> float:
    """Jain's index of starts per recipe while each still waits: 1 is equal, 1/n is one only."""
    left, counts = Counter(wanted), Counter[str]()
    for recipe in order:
        if min(left.values()) <= 0:
            break
        left[recipe] -= 1
        counts[recipe] += 1
    shares = [counts[recipe] for recipe in wanted]
    return round(sum(shares) ** 2 / (len(shares) * sum(n * n for n in shares)), 3)


def deploy(limit: int) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", concurrency_limit=limit), overwrite=True
        )
        client.create_deployment(
            flow_id=client.create_flow(stand_in),
            name=POOL,
            entrypoint="bench.stand_in.stand_in",
            work_pool_name=POOL,
            pull_steps=[
                {"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}
            ],
        )


@contextmanager
def a_worker(root: Path, gpus: int) -> Iterator[None]:
    """A process worker of a machine with so many GPUs, ready."""
    env = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # as deployments/up.py
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "TRAINYARD_SLOTS": str(root / "slots"),
        "TRAINYARD_GPUS": ",".join(f"gpu{n}:24" for n in range(gpus)),
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    with running(command, env, root / f"worker-{time.monotonic_ns()}.log"):
        wait_for_worker()
        yield


def wait_for_worker(deadline_s: float = 180) -> None:
    end = time.monotonic() + deadline_s
    with get_client(sync_client=True) as client:
        while not dispatch._is_ready(client, POOL):
            if time.monotonic() > end:
                raise SystemExit("the worker did not start")
            time.sleep(0.5)


@contextmanager
def a_killer(log: Path, load: Load) -> Iterator[list[str]]:
    """SIGKILL to a flow run at work, now and then; its program must not outlive it."""
    done, killed, dice = threading.Event(), list[str](), random.Random(7)

    def kill() -> None:
        while len(killed) < load.kills and not done.wait(load.seconds / 2):
            working = at_work(log)
            if working:
                run, pid = dice.choice(working)
                killed.append(run)
                os.kill(pid, signal.SIGKILL)
                done.wait(load.seconds * load.releases / load.gpus / (load.kills + 1))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        done.set()
        killer.join()


def at_work(log: Path) -> list[tuple[str, int]]:
    """Runs and processes of jobs that started and did not end; none is killed twice."""
    found: dict[str, int] = {}
    for event, _, run, pid, _ in (line.split() for line in log.read_text().splitlines()):
        if event == "start" and run not in found:
            found[run] = int(pid)
        elif event == "start" or event == "end":
            found[run] = 0
    return [(run, pid) for run, pid in found.items() if pid and Path(f"/proc/{pid}").exists()]


if __name__ == "__main__":
    main()
