"""Which GPU pools satisfy a recipe's `resources`. Pure."""

from collections.abc import Sequence

from pydantic import PositiveFloat, PositiveInt

from trainyard.errors import InputError
from trainyard.recipe.base import Frozen
from trainyard.recipe.resources import ResourcesSpec


class GpuPool(Frozen):
    """What the machines behind a deployment's work pool have."""

    deployment: str
    """`flow/deployment`; the work pool is its own."""

    gpus: PositiveInt = 1
    """GPUs of one machine."""

    nodes: PositiveInt = 1
    """Machines that one training may have; only the Job of a Kubernetes pool starts several."""

    memory_gib: PositiveFloat | None = None
    """Of one GPU, as torch reports it; without it, any memory is believed to be there."""

    labels: frozenset[str] = frozenset()
    """What recipes may ask for in `resources.labels`, as [eu, nvlink]."""

    def lacks(self, need: ResourcesSpec) -> str | None:
        """Return what this pool has too little of, or None."""
        missing = sorted(need.labels - self.labels)
        if missing:
            return f"is not labelled {', '.join(missing)}"
        if self.gpus < need.gpus:
            return f"has {self.gpus} GPUs a machine"
        if self.nodes < need.nodes:
            return f"has {self.nodes} machines a training"
        if need.memory_gib and self.memory_gib and self.memory_gib < need.memory_gib:
            return f"has {self.memory_gib:g} GiB a GPU"
        return None


def suitable(pools: Sequence[GpuPool], need: ResourcesSpec) -> list[str]:
    """Return the deployments whose pools do, those with the least memory first.

    Raises InputError saying of each pool what it lacks.
    """
    lacking = {pool.deployment: pool.lacks(need) for pool in pools}
    if all(lacking.values()):
        many = f"{need.nodes} machines of " if need.nodes > 1 else ""
        asked = f"{many}{need.gpus} GPUs" + (
            f" of {need.memory_gib:g} GiB" if need.memory_gib else ""
        )
        asked += f" labelled {', '.join(sorted(need.labels))}" if need.labels else ""
        said = "; ".join(f"{name} {why}" for name, why in lacking.items())
        raise InputError(f"no GPU pool has {asked}: {said or 'none is named'}")
    fit = [pool for pool in pools if lacking[pool.deployment] is None]
    return [pool.deployment for pool in sorted(fit, key=lambda pool: pool.memory_gib or 0.0)]
