import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from trainyard.evaluation.ranks import average_ranks


@given(st.lists(st.integers(-3, 3) | st.floats(-1, 1), min_size=1))
def test_ranks_are_those_of_scipy(values):
    assert np.array_equal(average_ranks(values), rankdata(values))
