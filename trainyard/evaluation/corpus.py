"""Corpus scores from sums of item statistics, for one sum or for many resamples at once.

BLEU and chrF are sacrebleu's formulas (smoothing `exp`, chrF with six character orders, beta 2);
a test holds them equal to sacrebleu on the same texts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.evaluation.scores import Score

Floats = NDArray[np.float64]

BLEU_WIDTH = 10
"""correct[4], total[4], length of the answer, length of the reference."""

CHRF_WIDTH = 18
"""(n-grams of the answer, of the reference, in common) for orders 1 to 6."""


def bleu(stats: Floats) -> Any:
    """Corpus BLEU in [0, 100] of summed statistics (..., 10)."""
    stats = np.asarray(stats, dtype=float)
    correct, total = stats[..., :4], stats[..., 4:8]
    answer, reference = stats[..., 8], stats[..., 9]
    # sacrebleu's `exp`: the k-th order without a match counts as 1 / 2^k matches
    misses = np.cumsum((correct == 0) & (total > 0), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(correct > 0, correct / total, 1 / (2.0**misses * total))
        logs = np.where(total > 0, np.log(precision), -np.inf).mean(axis=-1)
        brevity = np.where(answer < reference, np.exp(1 - reference / np.maximum(answer, 1e-9)), 1)
    score = 100 * brevity * np.exp(logs)
    return np.where((correct[..., 0] == 0) | (answer == 0), 0.0, score)


def chrf(stats: Floats) -> Any:
    """Corpus chrF2 in [0, 100] of summed statistics (..., 18)."""
    stats = np.asarray(stats, dtype=float)
    parts = stats.reshape(*stats.shape[:-1], 6, 3)
    answer, reference, common = parts[..., 0], parts[..., 1], parts[..., 2]
    used = (answer > 0) & (reference > 0)
    orders = np.maximum(used.sum(axis=-1), 1)
    precision = np.where(used, common / np.maximum(answer, 1), 0).sum(axis=-1) / orders
    recall = np.where(used, common / np.maximum(reference, 1), 0).sum(axis=-1) / orders
    below = 4 * precision + recall
    return np.where(below > 0, 500 * precision * recall / np.maximum(below, 1e-300), 0.0)


def f1(stats: Floats) -> Any:
    """Macro-F1 in [0, 1] of (hits, predicted, expected) per label, over labels that occur.

    Opitz and Burst 2019 (arXiv 1911.03347): the mean of the labels' F1. A label that is neither
    expected nor predicted has no F1 and is left out.
    """
    stats = np.asarray(stats, dtype=float)
    parts = stats.reshape(*stats.shape[:-1], -1, 3)
    below = parts[..., 1] + parts[..., 2]
    scores = np.where(below > 0, 2 * parts[..., 0] / np.maximum(below, 1), 0.0)
    return scores.sum(axis=-1) / np.maximum((below > 0).sum(axis=-1), 1)


def statistics(
    metric: str, rows: Sequence[Score]
) -> tuple[Floats, Callable[[Floats], Floats]] | None:
    """Item statistics and their corpus score, when the metric and all its rows have them."""
    widths = {"bleu": BLEU_WIDTH, "chrf": CHRF_WIDTH}
    if metric in widths and all(len(row.stats) == widths[metric] for row in rows):
        return np.array([row.stats for row in rows]), bleu if metric == "bleu" else chrf
    if metric == "macro_f1" and all(row.expected is not None for row in rows):
        return label_counts([(row.expected or "", row.predicted) for row in rows]), f1
    return None


def label_counts(pairs: Sequence[tuple[str, str | None]]) -> Floats:
    """Matrix (items, 3 x labels) of hits, predicted and expected.

    An answer that is no label of the references misses its own label and adds none.
    """
    labels = {name: i for i, name in enumerate(sorted({expected for expected, _ in pairs}))}
    counts = np.zeros((len(pairs), len(labels), 3))
    for row, (expected, predicted) in zip(counts, pairs, strict=True):
        row[labels[expected], 2] = 1
        if predicted in labels:
            row[labels[predicted], 1] = 1
            row[labels[expected], 0] = float(predicted == expected)
    return counts.reshape(len(pairs), -1)
