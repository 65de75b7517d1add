import numpy as np
import pytest

from trainyard.data.drift import Drift, judge_drift, shift_of_shares, shift_of_values

RNG = np.random.default_rng(3)


def test_equal_distributions_stay_within_their_noise() -> None:
    shift = shift_of_values("n", RNG.normal(100, 20, 1000), RNG.normal(100, 20, 1000))
    assert shift.psi < 3 * shift.noise
    assert shift.moved < 0.15


def test_a_third_more_is_seen_whatever_the_size() -> None:
    for n in (1000, 100_000):
        shift = shift_of_values("n", RNG.normal(100, 20, n), RNG.normal(135, 27, n))
        assert shift.psi > max(0.25, 3 * shift.noise)


def test_one_percent_at_a_million_rows_is_no_drift() -> None:
    """Kolmogorov-Smirnov gives p = 5e-23 for such a change."""
    before = RNG.lognormal(4.8, 0.5, 1_000_000)
    assert shift_of_values("n", before, before * 1.01).psi < 0.01


def test_psi_is_the_published_sum() -> None:
    """Shares 0.5/0.5 to 0.6/0.4: 0.1 ln 1.2 - 0.1 ln 0.8 (Siddiqi 2006, chapter 10)."""
    shift = shift_of_shares("label", {"a": 500, "b": 500}, {"a": 600, "b": 400})
    assert shift.psi == pytest.approx(0.1 * np.log(0.6 / 0.5) - 0.1 * np.log(0.4 / 0.5))
    assert (shift.what, shift.before, shift.after) == ("a", 0.5, 0.6)


def test_a_constant_becoming_another_is_drift() -> None:
    shift = shift_of_values("turns", np.full(900, 2.0), np.full(900, 4.0))
    assert shift.psi > 1


def test_rates_and_removed_rows_are_judged_absolutely() -> None:
    drift = Drift((), {"refusal": (0.01, 0.05), "pii": (0.1, 0.11)}, 5, 300, 0.3, "d")
    refuse, warn = judge_drift(
        drift, warn_at=0.1, refuse_at=0.25, max_rate_change=0.02, max_removed=0.2
    )
    assert refuse == ["300 rows of the former version are gone (30.0%, over 20.0%)"]
    assert warn == ["refusal went from 1.00% to 5.00% of lines"]
