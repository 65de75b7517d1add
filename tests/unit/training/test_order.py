import math

from hypothesis import given
from hypothesis import strategies as st

from trainyard.training.order import order_of_epoch, rows_of_step


@given(st.integers(1, 200), st.integers(1, 17), st.integers(0, 3), st.integers(0, 4))
def test_every_pass_trains_each_row_once(rows, batch_size, seed, epoch):
    steps = math.ceil(rows / batch_size)
    seen = [
        row
        for step in range(epoch * steps, (epoch + 1) * steps)
        for row in rows_of_step(rows, batch_size, seed, step)
    ]
    assert sorted(seen) == list(range(rows))
    assert seen == order_of_epoch(rows, seed, epoch)


def test_passes_and_seeds_differ():
    assert order_of_epoch(50, 0, 0) != order_of_epoch(50, 0, 1)
    assert order_of_epoch(50, 0, 0) != order_of_epoch(50, 1, 0)
