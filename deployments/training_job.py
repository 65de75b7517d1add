"""Print what the Kubernetes pool makes of a recipe's training, without a server or a cluster.

`TRAINYARD_GPU_IMAGE=... python -m deployments.training_job RECIPE`: the Job, as the pool's template
gives it to a worker, and the Service and policy by which its pods meet. The worker adds labels of
the run and how to reach its server.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.utilities.templating import apply_values

from deployments.pools import read_pools
from trainyard.errors import InputError, TrainyardError
from trainyard.recipe import Recipe, read_recipe

POOL = "gpu-kubernetes"
NODES = Path(__file__).parent / "kubernetes" / "base" / "control" / "nodes.yaml"
COMMAND = ["prefect", "flow-run", "execute"]


def objects(recipe: Recipe) -> list[dict[str, Any]]:
    """Raises InputError without a GPU in the recipe, or an image for the pool."""
    need = recipe.resources
    if not need.gpus:
        raise InputError(f"{recipe.name} has resources.gpus 0: pool {POOL} is for GPUs")
    pool = next(pool for pool in read_pools() if pool.name == POOL)
    if (why := pool.missing()) is not None:
        raise InputError(why)
    template = pool.base_job_template()
    variables = template["variables"]["properties"]
    values = {name: one["default"] for name, one in variables.items() if "default" in one}
    values |= {"gpu_count": need.gpus, "nodes": need.nodes, "name": f"train-{recipe.name}"}
    job: dict[str, Any] = apply_values(
        template["job_configuration"]["job_manifest"], values | {"command": COMMAND}
    )
    for of_the_job in ("completions", "parallelism"):  # the worker insists on them here, as 1
        del job["spec"]["template"]["spec"][of_the_job]
    return [job, *yaml.safe_load_all(NODES.read_text(encoding="utf-8"))]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m deployments.training_job RECIPE", file=sys.stderr)
        return 2
    try:
        print(yaml.safe_dump_all(objects(read_recipe(Path(arguments[0]))), sort_keys=False), end="")
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
