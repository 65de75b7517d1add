"""The test of a stream against its own beginning: how often it rings, and how soon."""

import itertools
import math
import random

import pytest
from scipy.stats import beta

from trainyard.monitor.change import _SHARES, Change

RULES = {"baseline": 50, "margin": 0.05, "alpha": 0.05}


def run(seed: int, before: float, after: float, good: int, total: int) -> int | None:
    """Answers after the change until it rings; negative for a false alarm, None for none."""
    rng, stream = random.Random(seed), Change()
    for i in range(total):
        stream = stream.take([rng.random() < (before if i < good else after)], **RULES)
        if stream.n > RULES["baseline"] and stream.rings(RULES["alpha"]):
            return i + 1 - good
    return None


def test_the_limit_is_the_exact_upper_bound_and_the_margin() -> None:
    stream = Change().take([True] * 4 + [False] * 46, **RULES)
    assert stream.limit(0.05, 0.05) == pytest.approx(beta.ppf(0.975, 5, 46) + 0.05)


def test_the_capital_is_the_sum_over_all_moments_of_a_change() -> None:
    """By its definition: each start's own product, and the rest unstaked."""
    answers = [False, True, True, False, True]
    stream = Change(n=50, bad=5, baseline_n=50, baseline_bad=5)
    limit = stream.limit(0.05, 0.05)
    total = 0.0
    for share, start in itertools.product(_SHARES, range(len(answers))):
        worth = 1 / ((start + 1) * (start + 2))
        total += worth * math.prod(1 + share * (x - limit) / limit for x in answers[start:])
    unstaked = 1 / (len(answers) + 1)
    assert stream.take(answers, **RULES).e_value == pytest.approx(total / len(_SHARES) + unstaked)


def test_one_that_stays_as_it_began_hardly_ever_rings() -> None:
    rings = sum(run(seed, 0.1, 0.1, 0, 600) is not None for seed in range(100))
    assert rings <= 5


@pytest.mark.parametrize("good", [60, 1000])
def test_a_rise_is_found_soon_also_after_a_long_good_time(good: int) -> None:
    found = [run(seed, 0.05, 0.5, good, good + 200) for seed in range(20)]
    late = sorted(math.inf if f is None else f for f in found)
    assert late[0] > 0
    assert late[10] <= 80


def test_answers_may_come_one_by_one_or_all_at_once_and_from_disk() -> None:
    answers = [i % 7 == 0 for i in range(120)]
    whole = Change().take(answers, **RULES)
    half = Change.model_validate_json(Change().take(answers[:70], **RULES).model_dump_json())
    assert half.take(answers[70:], **RULES) == whole
    assert "8 bad of the first 50, 10 of 70 since" in whole.words("feedback", 0.05, 0.05)
