import random

import pytest

from trainyard.rollout.betting import Capital


def test_the_bet_is_fair_at_the_limit() -> None:
    """The mean capital after one bet is 1, whatever was staked."""
    for limit in (0.01, 0.3, 0.9):
        up, down = Capital().take([1.0], limit).e_value, Capital().take([0.0], limit).e_value
        assert limit * up + (1 - limit) * down == pytest.approx(1)


@pytest.mark.parametrize("limit", [0.01, 0.5])
def test_at_the_limit_it_crosses_no_more_often_than_alpha(limit: float) -> None:
    draw, crossed = random.Random(3), 0
    for _ in range(200):
        capital = Capital()
        for _ in range(20):
            capital = capital.take([float(draw.random() < limit) for _ in range(25)], limit)
            if capital.e_value > 20:  # alpha 0.05, looked at 20 times
                crossed += 1
                break
    assert crossed <= 18  # 10 expected at most; 18 has a chance of 1 %


def test_past_the_limit_it_grows() -> None:
    draw = random.Random(4)
    values = [float(draw.random() < 0.1) for _ in range(300)]
    assert Capital().take(values, 0.03).e_value > 100
    assert Capital().take([0.0] * 300, 0.03).e_value < 1
