"""A release reduced to the one stage that it sends to a GPU pool."""

from prefect import flow

from bench.slots import POOL
from tasks import dispatch


@flow(
    name="parent",
    on_cancellation=[dispatch.cancel_children],
    on_crashed=[dispatch.cancel_children],
)
def parent(log: str) -> None:
    parameters = {"run": "child-0", "log": log, "seconds": 900}
    dispatch.run(f"stand-in/{POOL}", parameters, "train", recipe="child")
