"""Create or update the work pools of `deployments/work_pools/`; doing it twice changes nothing.

Works on any server that PREFECT_API_URL names, Prefect Cloud included.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, PositiveInt

FOLDER = Path(__file__).parent / "work_pools"


class WorkPool(BaseModel):
    """One file of `work_pools/`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    type: str
    description: str
    concurrency_limit: PositiveInt
    variables: dict[str, Any] = {}
    """Defaults of the base job template's variables."""

    def base_job_template(self) -> dict[str, Any]:
        template: dict[str, Any] = ProcessWorker.get_default_base_job_template()
        for name, value in self.variables.items():
            template["variables"]["properties"][name]["default"] = value
        return template


def read_pools() -> list[WorkPool]:
    found = [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]
    return [WorkPool.model_validate(pool) for pool in found]


def apply(pools: list[WorkPool]) -> None:
    with get_client(sync_client=True) as client:
        for pool in pools:
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
                client.create_work_pool(create)
                done = "created"
            print(f"work pool {pool.name} {done}: {pool.type}, {pool.concurrency_limit} at a time")


if __name__ == "__main__":
    apply(read_pools())
    sys.exit(0)
