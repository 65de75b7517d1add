"""The hardware a training gets, and what it costs."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from trainyard.recipe.base import Frozen

GPU_GIB = {
    "T4": 14.6,
    "L4": 22.0,
    "A10": 22.0,
    "RTX-4090": 23.6,
    "A100-40": 39.4,
    "L40S": 44.4,
    "A100-80": 79.2,
    "H100": 79.2,
    "H200": 139.7,
    "B200": 178.3,
}
"""Memory that torch reports for each card, in GiB: the nominal size less what the driver keeps."""

Card = Literal["T4", "L4", "A10", "RTX-4090", "A100-40", "L40S", "A100-80", "H100", "H200", "B200"]


class ResourcesSpec(Frozen):
    gpus: Annotated[int, Field(ge=0, le=8)] = 0
    """GPUs of one machine, which share the rows of a batch, and by `train.sharding` the model too;
    0 trains on the CPU."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Machines of `gpus` each that train together: pods of an indexed Job in a Kubernetes pool.
    Evaluation takes one."""

    gpu: Card | None = None
    """Which card, for the memory plan. Without it, and without `gpu_gib`, memory is not planned."""

    gpu_gib: PositiveFloat | None = None
    """Memory of each card in GiB, for a card that is not listed."""

    labels: frozenset[str] = frozenset()
    """What a GPU pool must be labelled with, as [eu, nvlink]: deployments/environments says which
    pool is. Without a choice of pools they are not looked at."""

    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Who gets a GPU first where several wait: higher before lower; within one priority the recipes
    take turns."""

    price_per_gpu_hour: NonNegativeFloat | None = None
    """In any currency; without it, the card's price in `deployments/prices.yaml`."""

    max_hours: PositiveFloat = 72.0
    """A training that lasts longer is ended; its last checkpoint stays."""

    @property
    def training_gpus(self) -> int:
        """GPUs of all machines that train together."""
        return self.gpus * self.nodes

    @property
    def processes(self) -> int:
        """Processes that share a batch: one per GPU, and one without a GPU."""
        return max(1, self.training_gpus)

    @property
    def memory_gib(self) -> float | None:
        """Usable memory of one card, where it is known."""
        return self.gpu_gib if self.gpu is None else GPU_GIB[self.gpu]

    @model_validator(mode="after")
    def _one_card(self) -> "ResourcesSpec":
        if self.gpu is not None and self.gpu_gib is not None:
            raise ValueError(
                f"gpu ({self.gpu}) and gpu_gib ({self.gpu_gib}) both say how much memory"
            )
        if self.gpus == 0 and (self.gpu or self.gpu_gib or self.price_per_gpu_hour):
            raise ValueError("gpu, gpu_gib and price_per_gpu_hour need gpus to be 1 or more")
        if self.nodes > 1 and self.gpus == 0:
            raise ValueError(f"nodes ({self.nodes}) needs gpus, those of one node, to be 1 or more")
        return self
