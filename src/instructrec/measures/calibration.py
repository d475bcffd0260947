"""Calibration of a model that chooses among labels: is it right as often as it is sure?

N rows, L labels, B bins of equal width over a confidence from 0 to 1.

Confidence is the probability of the label that is chosen, over the labels alone. The expected calibration error (Naeini
et al. 2015, Guo et al. 2017, arXiv 1706.04599) is

    ECE = sum over bins of  n_b / N · |accuracy_b - confidence_b|

It is never below 0 and grows with fewer rows in a bin by chance alone, so a small one on few rows can't be told from
none, and its bootstrap interval lies somewhat high for the same reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .statistics import Estimate, Floats, Statistic, bootstrap

BINS = 10


def probabilities(scores: Floats) -> Floats:
    """[N, L] log-likelihoods as probabilities over the labels."""
    return np.asarray(np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)))


def calibration_error(confidence: Floats, right: Floats) -> Statistic:
    """ECE in percent as sums over rows. confidence [N]: of the label chosen.  right [N]: 1 where it is
    the right one."""
    places = bins_of(confidence)
    there = np.eye(BINS)[places]  # [N, B]
    sums = np.concatenate([there * confidence[:, None], there * right[:, None], np.ones((len(right), 1))], axis=1)

    def finish(total: Floats) -> Floats:
        sure, hit = total[:, :BINS], total[:, BINS : 2 * BINS]
        return np.asarray(100.0 * np.abs(sure - hit).sum(axis=1) / total[:, -1])

    return Statistic(sums, finish, (0.0, 100.0))


def bins_of(confidence: Floats) -> NDArray[np.intp]:
    """The bin of each row; a confidence of 1 belongs to the last."""
    return np.asarray(np.minimum((confidence * BINS).astype(np.intp), BINS - 1))


def calibration(
    confidence: Floats, right: Floats, *, resamples: int, seed: int, clusters: Sequence[Hashable] | None = None
) -> tuple[Estimate, list[dict[str, Any]]]:
    """ECE with its interval, and the bins in percent; a bin without rows has neither confidence nor accuracy."""
    estimate = bootstrap(calibration_error(confidence, right), resamples=resamples, seed=seed, clusters=clusters)
    places = bins_of(confidence)
    table = []
    for number in range(BINS):
        inside = places == number
        count = int(inside.sum())
        table.append(
            {
                "low": 100.0 * number / BINS,
                "high": 100.0 * (number + 1) / BINS,
                "confidence": 100.0 * float(confidence[inside].mean()) if count else None,
                "accuracy": 100.0 * float(right[inside].mean()) if count else None,
                "n": count,
            }
        )
    return estimate, table
