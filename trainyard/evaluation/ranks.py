"""Ranks. SciPy's own come with all of scipy.stats, a second of every start for one function."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1 of finite values, equal ones sharing their mean rank: `scipy.stats.rankdata`."""
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
