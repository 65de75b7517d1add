"""`make up`: Prefect server, work pools, workers and deployments on this machine.

What it starts is written to `.trainyard/up.json`, so that `make down` ends exactly that.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

import flows  # noqa: F401  (settles PREFECT_HOME)
from deployments import postgres
from trainyard import files, process

HOME = Path(".trainyard").absolute()
RECORDS = HOME / "up.json"
LOGS = HOME / "logs"
PORT = int(os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
API = f"http://127.0.0.1:{PORT}/api"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
SQLITE_WARNING = (
    "without PostgreSQL: using SQLite with one worker, and a release runs in one process. "
    "SQLite loses writes under several workers; install PostgreSQL for more."
)


def main() -> int:
    alive = [entry for entry in read_records() if process.is_alive(entry)]
    if alive:
        print(f"already up at http://127.0.0.1:{PORT}: {', '.join(entry.name for entry in alive)}")
        return 0
    if process.port_in_use(PORT):
        print(
            f"port {PORT} is in use: end what listens there, or set PREFECT_SERVER_API_PORT",
            file=sys.stderr,
        )
        return 2
    LOGS.mkdir(parents=True, exist_ok=True)
    started: list[process.ProcessRecord] = []
    try:
        bring_up(started)
    except BaseException as error:
        for entry in reversed(started):
            process.stop(entry)
        RECORDS.unlink(missing_ok=True)
        if isinstance(error, subprocess.CalledProcessError):
            print(f"{' '.join(error.cmd)} ended with {error.returncode}", file=sys.stderr)
            return 2
        raise
    print(f"\nPrefect UI   http://127.0.0.1:{PORT}")
    print("release      .venv/bin/prefect deployment run release/quickstart")
    print(f"             with PREFECT_API_URL={API}")
    print("end          make down")
    return 0


def bring_up(started: list[process.ProcessRecord]) -> None:
    env = os.environ | {
        "PREFECT_API_URL": API,
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # automations/crash-lost-runs.yaml counts on it
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # doubling from 2 s: a server may be away for 5 minutes
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # 10 by default, waited once per stage
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs,orphans",  # after 90 days
        "TRAINYARD_ROOT": str(Path.cwd()),
    }
    binaries = postgres.find_binaries()
    if binaries and not postgres.can_reach(HOME):
        print(f"warning: PostgreSQL's user cannot enter {HOME}")
        binaries = None
    if binaries:
        server, url = postgres.start(HOME / "postgres", LOGS / "postgres.log", binaries)
        remember(started, server, "postgres")
        env |= {"PREFECT_API_DATABASE_CONNECTION_URL": url, "TRAINYARD_ENVIRONMENT": "team"}
        workers = ["cpu", "gpu"]
    else:
        print(f"warning: {SQLITE_WARNING}")
        env |= {"TRAINYARD_ENVIRONMENT": "laptop"}
        workers = ["cpu"]
    prefect = [sys.executable, "-m", "prefect"]
    where = ["--host", "127.0.0.1", "--port", str(PORT)]
    remember(started, spawn([*prefect, "server", "start", *where], env, "server"), "server")
    wait_until_healthy()
    env.pop("PREFECT_API_DATABASE_CONNECTION_URL", None)  # the server's alone
    for module in ("deployments.pools", "deployments.automate"):
        subprocess.run([sys.executable, "-m", module], env=env, check=True)
    deploy = [*prefect, "--no-prompt", "deploy", "--all"]
    with (LOGS / "deploy.log").open("wb") as log:
        subprocess.run(
            deploy, env=env, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    for pool in workers:
        name = f"worker-{pool}"
        command = [*prefect, "worker", "start", "--pool", pool, "--name", name]
        remember(started, spawn(command, env, name), name)


def spawn(command: list[str], env: dict[str, str], name: str) -> "subprocess.Popen[bytes]":
    with (LOGS / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def remember(
    started: list[process.ProcessRecord], child: "subprocess.Popen[bytes]", name: str
) -> None:
    started.append(process.record(child.pid, name))
    files.write_json(RECORDS, [entry.model_dump() for entry in started])
    print(f"started {name} (process {child.pid})")


def read_records() -> list[process.ProcessRecord]:
    if not RECORDS.exists():
        return []
    return [process.ProcessRecord.model_validate(entry) for entry in files.read_json(RECORDS)]


def wait_until_healthy(deadline_s: float = 90) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            if httpx.get(f"{API}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(
        f"the Prefect server did not answer at {API}; its log is {LOGS / 'server.log'}"
    )


if __name__ == "__main__":
    sys.exit(main())
