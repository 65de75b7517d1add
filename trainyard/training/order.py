"""The order in which rows are trained: a pure function of seed, pass and step.

It does not depend on the micro-batch, on accumulation or on the number of devices, so a run that
was interrupted, or shrunk after memory ended, sees the same rows at the same step.
"""

import math
import random
from collections.abc import Sequence


def order_of_epoch(rows: int, seed: int, epoch: int) -> list[int]:
    """Return row numbers of one pass, every row once."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def rows_of_step(rows: int, batch_size: int, seed: int, step: int) -> Sequence[int]:
    """Row numbers that optimiser step `step`, counted from 0, trains on."""
    epoch, batch = divmod(step, math.ceil(rows / batch_size))
    return order_of_epoch(rows, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]
