"""Many releases at once on one server: none lost, none twice, no GPU shared, and what each costs.

Real: server, PostgreSQL, two process workers, dispatch, the training flow with its launcher and
job contract, the locks. Not real: GPUs, what trains, what evaluates. All releases are submitted at
once; the CPU pool lets `--at-once` of them run, since each is a process of 200 MB. The overhead is
what a release took beside its stages and its wait for a GPU; it grows with all that shares the
cores.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from bench.slots import read
from bench.small_release import POOL, small_release
from bench.stand_in import stand_in
from bench.webhook import commit
from deployments.throwaway import a_database, a_server, running
from flows.training import training
from trainyard.recipe import read_recipe
from trainyard.release import data
from trainyard.release.job import Job

RECIPES = 5
SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[10, 50, 200])
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=8)
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        database = stack.enter_context(a_database(root))
        api = stack.enter_context(a_server(root, database))
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        deploy(root, given.at_once, given.gpus)
        for pool in ("bench-cpu", POOL):
            stack.enter_context(a_worker(root, pool, given.gpus))
        for count in given.counts:
            found.append(measure(root, count))
            print(f"{count} releases: {found[-1]}")
    total = sum(one["releases"] for one in found)
    keys = {
        "releases": total,
        "lost": sum(one["lost"] for one in found),
        "duplicates": sum(one["duplicates"] for one in found),
        "double_booked": sum(one["double_booked"] for one in found),
        "overhead_s": found[-1]["overhead_s"],
        "server_rss_mib": found[-1]["server_rss_mib"],
        "growth": round(found[-1]["overhead_s"] / found[0]["overhead_s"], 2),
    }
    print(f"{os.cpu_count()} cores, {'PostgreSQL' if database else 'SQLite'}, commit {commit()}, "
          f"{given.gpus} GPUs, {given.at_once} releases at once")  # fmt: skip
    print(json.dumps(keys))


def deploy(root: Path, at_once: int, gpus: int) -> None:
    (root / "times").mkdir()
    (root / "gpus.log").touch()
    write_recipe(root)
    with get_client(sync_client=True) as client:
        for pool, limit in (("bench-cpu", at_once), (POOL, gpus)):
            client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", concurrency_limit=limit)
            )
        flows: list[tuple[Flow[..., Any], str, str]] = [
            (small_release, "bench.small_release.small_release", "bench-cpu"),
            (training, "flows.training.training", POOL),
            (stand_in, "bench.stand_in.stand_in", POOL),
        ]
        here = {"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}
        for flow, entrypoint, pool in flows:
            client.create_deployment(
                flow_id=client.create_flow(flow),
                name="bench",
                entrypoint=entrypoint,
                work_pool_name=pool,
                pull_steps=[here],
            )


def write_recipe(root: Path) -> None:
    """The small recipe with a stand-in for its trainer, and its data checked."""
    recipe = yaml.safe_load(Path("tests/e2e/small.yaml").read_text())
    recipe["train"] = {
        "backend": "command",
        "command": [sys.executable, "-m", "bench.trainer", str(SECONDS)],
        "max_seq_len": recipe["train"]["max_seq_len"],
    }
    recipe["resources"] = {"gpus": 1}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    job = Job(recipe=read_recipe(root / "recipe.yaml"), recipe_path="", run_id="data",
              home=root / "home")  # fmt: skip
    data.run(job, lambda *_: None)


def a_worker(root: Path, pool: str, gpus: int) -> Any:
    env = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "TRAINYARD_SLOTS": str(root / "slots"),
        "TRAINYARD_GPUS": ",".join(f"gpu{n}:24" for n in range(gpus)),
        "BENCH_LOG": str(root / "gpus.log"),
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
    return running(command, env, root / f"{pool}.log")


def measure(root: Path, count: int) -> dict[str, Any]:
    """Release `count` times; the names of runs carry the count, so that rounds do not meet."""
    names = [f"r{count}-{n % RECIPES}" for n in range(count)]
    (root / "gpus.log").write_text("")
    for old in (root / "times").iterdir():
        old.unlink()
    begin, before = time.monotonic(), cpu_s()
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name("small-release/bench").id
        for number, name in enumerate(names):
            given = {"root": str(root), "name": name, "number": number, "seconds": SECONDS}
            client.create_flow_run_from_deployment(made, parameters=given, tags=[f"round {count}"])
        peak, runs = wait(client, count)
    seconds = time.monotonic() - begin
    times = [json.loads(file.read_text()) for file in (root / "times").iterdir()]
    ended = [file.name.rsplit("-", 3)[0] for file in (root / "times").iterdir()]
    log = read(root / "gpus.log", [])
    overheads = [one["seconds"] - one["waited"] - 2 * SECONDS for one in times]
    states = [run.state.name for run in runs if run.state and not run.state.is_completed()]
    return {
        "releases": count,
        "lost": count - len(set(ended)),
        "duplicates": len(ended) - len(set(ended)) + log["duplicates"],
        "double_booked": log["double_booked"],
        "jobs": log["started"],
        "overhead_s": round(statistics.median(overheads), 1) if overheads else None,
        "overhead_p95_s": round(sorted(overheads)[int(len(overheads) * 0.95)], 1),
        "waited_s": round(statistics.median(one["waited"] for one in times), 1),
        "seconds": round(seconds),
        "cpu_s_each": round((cpu_s() - before) / count, 1),
        "server_rss_mib": peak,
        "not_completed": states,
    }


def wait(client: Any, count: int) -> tuple[int, list[FlowRun]]:
    """Return the server's largest memory, and the runs when all have ended."""
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"round {count}"]))
    peak, end = 0, time.monotonic() + 120 + 60 * count
    while True:
        peak = max(peak, server_rss_mib())
        runs = client.read_flow_runs(flow_run_filter=wanted, limit=200)
        left = [run for run in runs if run.state is None or not run.state.is_final()]
        if not left or time.monotonic() > end:
            return peak, runs
        time.sleep(3)


def server_rss_mib() -> int:
    found = 0
    for child in psutil.Process().children(recursive=True):
        try:
            if "server" in child.cmdline() or "uvicorn" in child.cmdline():
                found += child.memory_info().rss >> 20
        except psutil.Error:
            continue
    return found


def cpu_s() -> float:
    """CPU seconds of everything started here, as far as it has been waited for or still runs."""
    total = 0.0
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.Error:
            continue
    return total


if __name__ == "__main__":
    main()
