"""Create or update the work pools of `deployments/work_pools/`; doing it twice changes nothing.

Works on any server that PREFECT_API_URL names, Prefect Cloud included. A pool whose image is not
named in the environment is left out, and said so. Each file changes the base job template of the
worker it is for: defaults, variables of our own, and what they become in the job.
"""

import copy
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal, assert_never

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

FOLDER = Path(__file__).parent / "work_pools"
_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")


class WorkPool(BaseModel):
    """One file of `work_pools/`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    type: Literal["process", "docker", "kubernetes"]
    description: str
    concurrency_limit: PositiveInt
    image: str | None = None
    """Environment variable that names the image of the jobs, by digest."""

    variables: dict[str, Any] = {}
    """Defaults of the base job template's variables."""

    added: dict[str, dict[str, Any]] = {}
    """Variables of our own, as JSON Schema."""

    removed: list[str] = []
    """Variables that a run may not set."""

    job: dict[str, Any] = Field(default_factory=dict)
    """Laid over the template's job configuration; a list replaces a list."""

    def missing(self) -> str | None:
        """Return why this pool cannot be made here; None when it can."""
        if self.image is None or _DIGEST.fullmatch(os.environ.get(self.image, "")):
            return None
        return f"set {self.image} to an image by digest, as in registry/name@sha256:..."

    def base_job_template(self) -> dict[str, Any]:
        template = copy.deepcopy(_default_template(self.type))
        properties = template["variables"]["properties"]
        for name, value in self.variables.items():
            properties[name]["default"] = value
        if self.type == "kubernetes" and (namespace := os.environ.get("TRAINYARD_NAMESPACE")):
            properties["namespace"]["default"] = namespace
        for name in self.removed:
            del properties[name]
        properties |= self.added
        if self.image is not None:
            properties["image"] |= {
                "default": os.environ.get(self.image),
                "pattern": _DIGEST.pattern,
            }
        template["job_configuration"] = _laid_over(template["job_configuration"], self.job)
        return template


def _default_template(kind: Literal["process", "docker", "kubernetes"]) -> dict[str, Any]:
    match kind:
        case "process":
            found: dict[str, Any] = ProcessWorker.get_default_base_job_template()
        case "docker":
            # only for who has Docker pools
            from prefect_docker.worker import DockerWorker  # noqa: PLC0415

            found = DockerWorker.get_default_base_job_template()
        case "kubernetes":
            # only for who has Kubernetes pools
            from prefect_kubernetes.worker import KubernetesWorker  # noqa: PLC0415

            found = KubernetesWorker.get_default_base_job_template()
        case _:
            assert_never(kind)
    return found


def _laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {**below, **{k: _laid_over(below.get(k), v) for k, v in above.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def read_pools() -> list[WorkPool]:
    found = [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]
    return [WorkPool.model_validate(pool) for pool in found]


def apply(pools: list[WorkPool]) -> None:
    with get_client(sync_client=True) as client:
        for pool in pools:
            why = pool.missing()
            if why is not None:
                print(f"work pool {pool.name} left out: {why}")
                continue
            template = pool.base_job_template()
            try:
                client.read_work_pool(pool.name)
                update = WorkPoolUpdate(
                    description=pool.description,
                    concurrency_limit=pool.concurrency_limit,
                    base_job_template=template,
                )
                client.update_work_pool(pool.name, update)
                done = "updated"
            except ObjectNotFound:
                create = WorkPoolCreate(
                    name=pool.name,
                    type=pool.type,
                    description=pool.description,
                    concurrency_limit=pool.concurrency_limit,
                    base_job_template=template,
                )
                try:
                    client.create_work_pool(create)
                    done = "created"
                except ObjectAlreadyExists:  # somebody else was quicker, with the same file
                    done = "there already"
            print(f"work pool {pool.name} {done}: {pool.type}, {pool.concurrency_limit} at a time")


if __name__ == "__main__":
    apply(read_pools())
    sys.exit(0)
