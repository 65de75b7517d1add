"""The drift test against its definition, other implementations, and its own promises."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from trainyard.errors import InputError
from trainyard.monitor import drift

SHOP = "my our the order parcel refund charger battery arrived broken please price late"
LAB = "the enzyme assay buffer protein membrane titre sample please culture reagent"


def window(seed: int, n: int, lab: float = 0.0) -> list[str]:
    rng = random.Random(seed)
    words = [(LAB if rng.random() < lab else SHOP).split() for _ in range(n)]
    return [" ".join(rng.choices(some, k=rng.randint(6, 20))) for some in words]


def direct_mmd2(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """The double sum of the paper, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * bandwidth**2)))

    n, m = len(x), len(y)
    own = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_the_statistic_is_the_double_sum_over_pairs() -> None:
    reference, live = window(1, 23), window(2, 31, lab=0.4)
    points = drift.embed([*reference, *live])
    found = drift.mmd_test(reference, live, permutations=1)
    assert found.mmd2 == pytest.approx(
        direct_mmd2(points[:23], points[23:], found.bandwidth), abs=1e-12
    )


def test_the_kernel_is_scikit_learns_with_the_median_distance() -> None:
    points = np.random.default_rng(0).normal(size=(40, 5))
    kernel, bandwidth = drift.gaussian_kernel(points)
    distances = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]]
    assert bandwidth == pytest.approx(np.median(distances))
    theirs = rbf_kernel(points, gamma=1 / (2 * bandwidth**2))
    np.fill_diagonal(theirs, 0)
    assert kernel == pytest.approx(theirs)


def test_tf_idf_is_scikit_learns() -> None:
    counts = drift.gram_counts(window(3, 30))
    theirs = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
    assert drift.tf_idf(counts).toarray() == pytest.approx(theirs, abs=1e-12)


def test_the_classifier_and_its_auc_are_scikit_learns() -> None:
    texts = [*window(4, 60), *window(5, 40, lab=0.5)]
    labels = np.r_[np.zeros(60), np.ones(40)]
    _, counts = drift.word_counts(texts)
    matrix = drift.tf_idf(counts)
    weights, bias = drift.logistic(matrix, labels)
    theirs = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000)
    theirs.fit(matrix, labels)
    assert weights == pytest.approx(theirs.coef_[0], abs=2e-3)
    assert bias == pytest.approx(theirs.intercept_[0], abs=2e-3)
    scores = np.round(matrix @ weights, 1)  # with ties
    assert drift.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_500_windows_without_drift_ring_as_often_as_they_may() -> None:
    alpha, runs = 0.05, 500
    rings = sum(
        drift.mmd_test(
            window(2 * i, 30), window(2 * i + 1, 30), permutations=99, seed=i
        ).p <= alpha
        for i in range(runs)
    )  # fmt: skip
    assert binom.ppf(0.001, runs, alpha) <= rings <= binom.ppf(0.999, runs, alpha)


def test_windows_of_different_sizes_ring_as_often_as_they_may() -> None:
    rings = sum(
        drift.mmd_test(
            window(2 * i, 60), window(2 * i + 1, 20), permutations=99, seed=i
        ).p <= 0.05
        for i in range(200)
    )  # fmt: skip
    assert binom.ppf(0.001, 200, 0.05) <= rings <= binom.ppf(0.999, 200, 0.05)


@pytest.mark.parametrize(("lab", "least"), [(0.2, 18), (1.0, 20)])
def test_a_new_topic_is_found(lab: float, least: int) -> None:
    reference = window(1, 200)
    found = [
        drift.mmd_test(reference, window(100 + i, 100, lab), permutations=200).p
        for i in range(20)
    ]  # fmt: skip
    assert sum(p <= 0.01 for p in found) >= least


def test_the_explanation_names_the_words_and_the_texts() -> None:
    live = [*window(8, 80), "the enzyme assay buffer protein membrane titre culture reagent enzyme"]
    live += window(9, 20, lab=1.0)
    found = drift.explain(window(7, 100), live)
    assert len(set(found.more) & set(LAB.split())) >= 6
    assert all(live[place].split()[1] in LAB.split() or place >= 80 for place in found.samples)
    assert 0.55 < found.auc < 0.9


def test_windows_that_cannot_be_told_apart_have_an_auc_of_one_half() -> None:
    found = [drift.explain(window(2 * i, 100), window(2 * i + 1, 100)).auc for i in range(10)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    "odd", [["", "", ""], ["\ud800 lone"] * 3, ["日本語の質問です。"] * 3, ["x" * 100_000] * 3]
)
def test_odd_texts_are_texts(odd: Sequence[str]) -> None:
    found = drift.mmd_test(window(1, 10), odd, permutations=20)
    assert 0 < found.p <= 1
    assert drift.explain(window(1, 10), odd).auc >= 0


def test_numbers_that_rise_are_no_drift() -> None:
    one, other = ([f"where is order {n + i}" for i in range(50)] for n in (0, 8000))
    assert drift.mmd_test(one, other).p == 1.0


def test_the_same_seed_gives_the_same_answer_and_one_text_is_no_window() -> None:
    one, other = window(1, 40), window(2, 40, lab=0.3)
    assert drift.mmd_test(one, other) == drift.mmd_test(one, other)
    with pytest.raises(InputError, match="needs two"):
        drift.mmd_test(one, ["x"])
