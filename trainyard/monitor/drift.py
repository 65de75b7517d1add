"""Do users ask something else than before? A permutation test says whether, a classifier what.

Texts become hashed character 3- and 4-grams, tf-idf weighted and reduced by an SVD. Everything is
fitted on both windows together and never sees which is which, so that permuting the windows gives
the exact distribution under "no drift" whatever the features are. Pure; no torch.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.sparse import csr_array

from trainyard.errors import InputError
from trainyard.evaluation.ranks import average_ranks

Floats = NDArray[np.float64]

BUCKETS = 1 << 15
COMPONENTS = 48
CHARS = 4000
"""Of a text, its beginning: a pasted document is not 100 questions."""
LEAST = 30
"""Texts of a window below which nothing is tested."""
FOLDS = 5
WORDS = 2000
_TOLD = 8
_NUMBER = re.compile(r"\d+")
_TOKEN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+")


@dataclass(frozen=True, slots=True)
class Mmd:
    """Maximum mean discrepancy of two windows with the p-value of its permutation test."""

    mmd2: float
    """Unbiased estimate; it may be negative when there is no difference."""
    p: float
    n: int
    m: int
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How well a classifier tells live texts from the reference, and by which words."""

    auc: float
    """Cross-validated; 0.5 when they cannot be told apart."""
    more: tuple[str, ...]
    """Words that speak most for the live window, strongest first."""
    fewer: tuple[str, ...]
    samples: tuple[int, ...]
    """Places of the live texts that are least like the reference."""


def mmd_test(
    reference: Sequence[str], live: Sequence[str], *, permutations: int = 500, seed: int = 0
) -> Mmd:
    """Test whether two windows of texts come from one distribution; the p-value is exact.

    Raises InputError for a window of fewer than two texts.
    """
    n, m = len(reference), len(live)
    if min(n, m) < 2:
        raise InputError(f"no drift test of {n} against {m} texts: each window needs two")
    kernel, bandwidth = gaussian_kernel(embed([*reference, *live]))
    observed = float(_mmd2(kernel, _first(n, n + m)[:, None])[0])
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(_first(n, n + m)) for _ in range(permutations)], axis=1)
    # a tie counts against us; rounding differs with the order of the sums
    as_large = int(np.sum(_mmd2(kernel, shuffled) >= observed - 1e-12))
    return Mmd(observed, (1 + as_large) / (1 + permutations), n, m, bandwidth)


def gaussian_kernel(points: Floats) -> tuple[Floats, float]:
    """RBF kernel with a diagonal of zeros, and its bandwidth: the median distance of all pairs.

    Gretton et al. 2012, JMLR 13:723, section 8.
    """
    squares = np.einsum("ij,ij->i", points, points)
    distance2 = squares[:, None] + squares - 2 * points @ points.T
    distance2[distance2 < 1e-9] = 0.0  # equal texts, but for rounding
    off = distance2[np.triu_indices(len(points), 1)]
    bandwidth = float(np.sqrt(np.median(off))) or 1.0
    kernel: Floats = np.exp(-distance2 / (2 * bandwidth**2))
    np.fill_diagonal(kernel, 0.0)
    return kernel, bandwidth


def _first(n: int, total: int) -> Floats:
    return (np.arange(total) < n).astype(np.float64)


def _mmd2(kernel: Floats, z: Floats) -> Floats:
    """Unbiased MMD^2 (Gretton et al. 2012, eq. 3) per column of `z`, which marks the first window.

    `kernel` has a diagonal of zeros, so sums over all pairs are sums over i != j.
    """
    n = z[:, 0].sum()
    m = len(z) - n
    kz = kernel @ z
    own = np.einsum("ij,ij->j", z, kz)
    cross = kz.sum(axis=0) - own
    other = kernel.sum() - own - 2 * cross
    found: Floats = own / (n * (n - 1)) + other / (m * (m - 1)) - 2 * cross / (n * m)
    return found


def embed(texts: Sequence[str]) -> Floats:
    """(texts, at most 48): tf-idf of hashed n-grams on the main directions of all texts."""
    matrix = tf_idf(gram_counts(texts))
    n = len(texts)
    # by way of the products of texts: far fewer than n-grams, and exact
    values, vectors = eigh(
        (matrix @ matrix.T).toarray(), subset_by_index=[max(0, n - COMPONENTS), n - 1]
    )
    points: Floats = vectors * np.sqrt(np.maximum(values, 0))
    return points


def gram_counts(texts: Sequence[str]) -> Any:
    """Counts of hashed character 3- and 4-grams of plain texts, (texts, 2^15)."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        words = f" {' '.join(plain(text).split())}  "
        codes = np.frombuffer(words.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
        for size in (3, 4):
            grams = codes[: len(codes) - size + 1].copy()
            for shift in range(1, size):
                end = len(codes) - size + 1 + shift
                grams = grams * np.uint64(0x100000001B3) + codes[shift:end]
            grams = (grams ^ (grams >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            columns.append((grams >> np.uint64(40)) % np.uint64(BUCKETS))
            rows.append(np.full(len(grams), row))
    ones = np.ones(sum(map(len, rows)))
    place = np.concatenate(rows), np.concatenate(columns).astype(np.int64)
    counts = csr_array((ones, place), shape=(len(texts), BUCKETS))
    counts.sum_duplicates()
    return counts


def plain(text: str) -> str:
    """The beginning in lower case, each number a 0: order numbers rise without drift."""
    return _NUMBER.sub("0", text[:CHARS].lower())


def tf_idf(counts: Any) -> Any:
    """Rows of length 1: (1 + ln tf) (1 + ln((1 + N) / (1 + df))), as scikit-learn's sublinear tf.

    Salton and Buckley 1988, with the smoothing of scikit-learn.
    """
    df = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = 1 + np.log((1 + counts.shape[0]) / (1 + df))
    weighted = counts.copy()
    weighted.data = (1 + np.log(counts.data)) * idf[counts.indices]
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    weighted.data /= np.repeat(np.where(norms > 0, norms, 1.0), np.diff(weighted.indptr))
    return weighted


def explain(reference: Sequence[str], live: Sequence[str], *, seed: int = 0) -> Explanation:
    """Train a classifier to tell the windows apart (Lopez-Paz and Oquab 2017, arXiv:1610.06545).

    Each text is scored by a classifier that has not seen it. What is departed from: accuracy is
    replaced by the area under the ROC curve, since the windows differ in size, and it decides
    nothing: the alarm is the permutation test.
    """
    labels = np.r_[np.zeros(len(reference)), np.ones(len(live))]
    names, counts = word_counts([*reference, *live])
    if not names:
        return Explanation(0.5, (), (), ())
    matrix = tf_idf(counts)
    fold = np.empty(len(labels), np.int64)
    rng = np.random.default_rng(seed)
    for label in (0, 1):
        places = rng.permutation(np.flatnonzero(labels == label))
        fold[places] = np.arange(len(places)) % FOLDS
    scores = np.zeros(len(labels))
    for number in range(FOLDS):
        out = fold == number
        weights, bias = logistic(matrix[~out], labels[~out])
        scores[out] = matrix[out] @ weights + bias
    weights, _ = logistic(matrix, labels)
    order = np.argsort(weights)
    strange = np.argsort(-scores[len(reference) :])[:5]
    return Explanation(
        auc(labels, scores),
        tuple(names[i] for i in order[::-1][:_TOLD] if weights[i] > 0),
        tuple(names[i] for i in order[:_TOLD] if weights[i] < 0),
        tuple(int(i) for i in strange),
    )


def word_counts(texts: Sequence[str]) -> tuple[list[str], Any]:
    """Names and counts of the words of two texts or more, the 2,000 most common."""
    found = [Counter(_TOKEN.findall(plain(text))) for text in texts]
    spread = Counter(word for words in found for word in words)
    names = sorted(word for word, count in spread.most_common(WORDS) if count > 1)
    place = {word: column for column, word in enumerate(names)}
    cells = [
        (row, place[word], count)
        for row, words in enumerate(found)
        for word, count in words.items()
        if word in place
    ]
    if not cells:
        return [], csr_array((len(texts), 0))
    rows, columns, counts = zip(*cells, strict=True)
    shape = (len(texts), len(names))
    return names, csr_array((np.array(counts, float), (rows, columns)), shape=shape)


def logistic(matrix: Any, labels: Floats, penalty: float = 1.0) -> tuple[Floats, float]:
    """Weights and bias of L2-penalised logistic regression, both classes counting the same."""
    share = labels.mean()
    sizes = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    signs = 2 * labels - 1

    def loss(theta: Floats) -> tuple[float, Floats]:
        margin = signs * (matrix @ theta[:-1] + theta[-1])
        slope = -sizes * signs / (1 + np.exp(np.clip(margin, -500, 500)))
        value = float(sizes @ np.logaddexp(0, -margin)) + penalty / 2 * float(
            theta[:-1] @ theta[:-1]
        )
        return value, np.r_[matrix.T @ slope + penalty * theta[:-1], slope.sum()]

    found = minimize(loss, np.zeros(matrix.shape[1] + 1), jac=True, method="L-BFGS-B")
    return found.x[:-1], float(found.x[-1])


def auc(labels: Floats, scores: Floats) -> float:
    """Area under the ROC curve, ties counting half (Mann-Whitney)."""
    positive = labels == 1
    n, m = int(positive.sum()), int((~positive).sum())
    return float((average_ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))
