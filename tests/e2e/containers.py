"""A work pool whose jobs are containers on a real engine, with an image that is made here.

The image is empty but for a few folders; the interpreter and the libraries are this machine's,
mounted read-only. So the worker, its job template and the isolation of the containers are real, and
nothing is downloaded; the image of the Dockerfile is what this does not test.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException

from deployments.pools import WorkPool, read_pools

TAG = "trainyard-empty:1"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin")


def engine() -> docker.DockerClient:
    """Skips, with the reason, where there is none on this machine."""
    where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not where.startswith("unix://") or not Path(where.removeprefix("unix://")).exists():
        pytest.skip(f"no Docker engine on this machine: {where} is not there")
    try:
        found = docker.from_env()
        found.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return found


def build(client: docker.DockerClient) -> str:
    if not any(TAG in image.tags for image in client.images.list()):
        repository, version = TAG.split(":")
        client.api.import_image_from_data(_root(), repository, version)
    return TAG


def debian(folder: Path) -> str:
    """Make a Debian with its Python 3.11, and with the certificate authorities of this machine."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("debootstrap, run by root, makes the base image: apt-get install debootstrap")
    system, tag = folder / "debian", "trainyard-debian:bookworm"
    packages = "--include=python3,python3-venv,ca-certificates"
    made = ["debootstrap", "--variant=minbase", packages, "bookworm", str(system)]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    known = Path("etc/ssl/certs/ca-certificates.crt")
    shutil.copy(Path("/") / known, system / known)
    with subprocess.Popen(
        ["tar", "-C", str(system), "--one-file-system", "-c", "."], stdout=subprocess.PIPE
    ) as packed:
        subprocess.run(["docker", "import", "-", tag], stdin=packed.stdout, check=True)
    return tag


def _root() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("tmp", "sbin", "etc", "run/lock", "var/tmp", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if "tmp" in name else 0o755
            tar.addfile(entry)
        users = b"root:x:0:0:root:/tmp:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(users)
        tar.addfile(passwd, io.BytesIO(users))
    return out.getvalue()


def pool(name: str, project: Path, home: Path) -> WorkPool:
    """The pool of cpu-docker.yaml, with this machine's files and a `.trainyard` apart."""
    declared = next(one for one in read_pools() if one.name == "cpu-docker")
    mounts = [f"{path}:{path}:ro" for path in _folders()]
    mounts += [f"{project}:{project}", f"{home}:{project}/.trainyard"]
    env = declared.variables["env"] | {
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "PYTHONPATH": str(project),
        "HOME": "/tmp",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    own = {"volumes": mounts, "env": env, "image": TAG, "network_mode": "host"}
    # an image that is made here has no digest that a pool could ask for
    return declared.model_copy(
        update={"name": name, "image": None, "variables": {**declared.variables, **own}}
    )


def _folders() -> list[str]:
    python = {sys.prefix, sys.base_prefix}
    system = [path for path in SYSTEM if Path(path).exists()]
    return system + sorted(path for path in python if not path.startswith("/usr"))
