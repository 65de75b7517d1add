"""Which side of the split a row is on: by cluster, and the same when rows are added."""

import numpy as np
from numpy.typing import NDArray

from trainyard.data.duplicates import Clusters, Rows


def validation(ids: NDArray[np.uint64], kept: Rows, clusters: Clusters, fraction: float) -> Rows:
    """Rows of `kept` held out. A cluster's side follows from its smallest id alone.

    Clusters larger than half of what is to be held out stay in train. When chance holds out
    nothing, the cluster nearest to the border is.
    """
    if not len(kept) or fraction == 0:
        return np.empty(0, np.int64)
    roots = clusters.roots()[kept]
    names, member, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return np.empty(0, np.int64)
    lowest = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, member, ids[kept, 1])
    place = _spread(lowest) / 2.0**64
    place[sizes > max(1.0, fraction * len(kept) / 2)] = 1.0
    chosen = place < fraction
    if not chosen.any():
        chosen[place.argmin()] = True
    return kept[chosen[member]]


def _spread(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The smallest of several ids is not uniform; its hash is."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)
