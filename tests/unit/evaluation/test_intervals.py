import numpy as np
import pytest

from trainyard.errors import InputError
from trainyard.evaluation.intervals import (
    clopper_pearson,
    clustered_se,
    newcombe_paired,
    ppi_mean,
    tango,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "score", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_rates_match_newcombe_1998_table_i(successes, n, score, exact):
    # Newcombe 1998, Stat Med 17:857, table I, methods 3 (score) and 5 (exact)
    assert wilson(successes, n) == pytest.approx(score, abs=6e-5)
    assert clopper_pearson(successes, n) == pytest.approx(exact, abs=6e-5)


@pytest.mark.parametrize(
    ("cells", "published"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ],
)
def test_paired_difference_matches_newcombe_1998_table_iii(cells, published):
    # Newcombe 1998, Stat Med 17:2635, table III, method 10
    assert newcombe_paired(*cells) == pytest.approx(published, abs=6e-5)


def test_paired_intervals_match_fagerland_2014_airway_example():
    # Fagerland, Lydersen and Laake 2014, Stat Med 33:2850, airway hyper-responsiveness before and
    # after transplantation (Bentur 2009): 1, 1, 7, 12 of 21; given to three digits
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=6e-4)
    assert newcombe_paired(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=6e-4)


def test_tango_without_discordant_pairs_is_z2_over_n_plus_z2():
    # Tango 1998, Stat Med 17:891, section 4: for b = c = 0 the limits are +-z^2 / (n + z^2)
    z2 = 1.959963984540054**2
    assert tango(0, 0, 54) == pytest.approx((-z2 / (54 + z2), z2 / (54 + z2)), abs=1e-9)


@pytest.mark.parametrize(
    ("failures", "n"), [(0, 299), (1, 473), (2, 628), (3, 773), (4, 913), (5, 1049), (10, 1693)]
)
def test_one_percent_is_proven_at_n_and_not_one_before(failures, n):
    # zero failures: 1 - 0.05^(1/n) <= 0.01 from n = 299 on (Hanley and Lippman-Hand 1983)
    assert clopper_pearson(failures, n, 0.9)[1] <= 0.01 < clopper_pearson(failures, n - 1, 0.9)[1]


def test_clustered_se_of_singletons_is_the_plain_one():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    plain = np.std(values) / np.sqrt(5)
    assert clustered_se(values, range(5)) == pytest.approx(plain)


def test_clustered_se_of_copies_counts_each_cluster_once():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    copied = [value for value in values for _ in range(10)]
    clusters = [i for i in range(5) for _ in range(10)]
    assert clustered_se(copied, clusters) == pytest.approx(clustered_se(values, range(5)))


def test_ppi_with_a_perfect_judge_is_as_narrow_as_labelling_everything():
    rng = np.random.default_rng(1)
    truth = rng.random(2200)
    low, high = ppi_mean(truth[:200], truth[:200], truth[200:])
    classic = 2 * 1.96 * truth.std() / np.sqrt(2200)
    assert high - low == pytest.approx(classic, rel=0.1)


def test_ppi_with_a_useless_judge_is_as_wide_as_the_labels_alone():
    rng = np.random.default_rng(2)
    labels, noise = rng.random(200), rng.random(2200)
    low, high = ppi_mean(labels, noise[:200], noise[200:])
    classic = 2 * 1.96 * labels.std() / np.sqrt(200)
    assert high - low == pytest.approx(classic, rel=0.05)


def test_ppi_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        truth = rng.random(1100) < 0.6
        judged = np.where(rng.random(1100) < 0.8, truth, rng.random(1100) < 0.7).astype(float)
        low, high = ppi_mean(truth[:100], judged[:100], judged[100:], 0.9)
        hits += low <= 0.6 <= high
    assert 0.87 <= hits / 1000 <= 0.93


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0),
        lambda: wilson(5, 4),
        lambda: clopper_pearson(-1, 4),
        lambda: tango(3, 3, 5),
        lambda: tango(0, 0, 0),
        lambda: wilson(1, 2, confidence=1.0),
        lambda: newcombe_paired(-1, 1, 1, 1),
        lambda: clustered_se([], []),
        lambda: clustered_se([1.0], [1, 2]),
        lambda: ppi_mean([1.0], [1.0], [1.0, 0.0]),
    ],
)
def test_no_items_and_impossible_counts_are_errors(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_all_and_none_reach_the_ends(interval, n):
    assert interval(0, n)[0] == 0.0
    assert interval(n, n)[1] == 1.0
