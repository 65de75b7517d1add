"""A PostgreSQL of our own under `.trainyard/postgres`, on loopback, with a password."""

import os
import pwd
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from trainyard import files
from trainyard.process import free_port

PROGRAMS = ("initdb", "postgres", "pg_isready", "psql")


def find_binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest where there are several."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent, *folders] if on_path else folders
    whole = [folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)]
    return whole[-1] if whole else None


def can_reach(folder: Path) -> bool:
    """Whether the server's own user may enter `folder`; for root that is the user `postgres`."""
    folder.mkdir(parents=True, exist_ok=True)
    return (
        subprocess.run(_as_owner(["test", "-x", str(folder)]), check=False, cwd="/").returncode == 0
    )


def start(folder: Path, log: Path, binaries: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server, making its data folder at first use; return it and its SQLAlchemy URL."""
    password_file = folder.with_name("postgres.password")
    if not (folder / "PG_VERSION").exists():
        _initialise(folder, password_file, binaries)
    password = password_file.read_text().strip()
    port = free_port()
    command = [
        str(binaries / "postgres"),
        "-D",
        str(folder),
        "-p",
        str(port),
        "-k",
        "",
        "-h",
        "127.0.0.1",
    ]
    with log.open("ab") as output:
        server = subprocess.Popen(
            _as_owner(command), stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    try:
        _wait_until_ready(server, binaries, port, log)
        _create_database(binaries, port, password)
    except BaseException:
        server.terminate()
        raise
    address = f"trainyard:{password}@127.0.0.1:{port}"
    return server, f"postgresql+asyncpg://{address}/prefect"


def _initialise(folder: Path, password_file: Path, binaries: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(password_file, secrets.token_urlsafe(24) + "\n", mode=0o600)
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        for path in (folder, password_file):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    options = ["-U", "trainyard", "--auth=scram-sha-256", "-E", "UTF8", "--no-locale"]
    command = [str(binaries / "initdb"), "-D", str(folder), *options, f"--pwfile={password_file}"]
    done = subprocess.run(_as_owner(command), capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise SystemExit(f"PostgreSQL could not make {folder}: {done.stderr.strip()}")


def _as_owner(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root; its own user does."""
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


def _wait_until_ready(
    server: subprocess.Popen[bytes], binaries: Path, port: int, log: Path
) -> None:
    end = time.monotonic() + 60
    probe = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while server.poll() is None and time.monotonic() < end:
        if subprocess.run(probe, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise SystemExit(f"PostgreSQL did not start; its log is {log}")


def _create_database(binaries: Path, port: int, password: str) -> None:
    psql = [str(binaries / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "trainyard", "-tA"]
    env = os.environ | {"PGPASSWORD": password}

    def run(statement: str) -> str:
        done = subprocess.run(
            [*psql, "-d", "postgres", "-c", statement],
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    if run("select 1 from pg_database where datname = 'prefect'") != "1":
        run("create database prefect")
