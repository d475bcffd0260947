"""Calibration error: known values, and what a well calibrated model gets."""

from __future__ import annotations

import numpy as np
import pytest

from instructrec.measures.calibration import BINS, bins_of, calibration, calibration_error, probabilities


def test_the_error_of_two_bins_by_hand() -> None:
    confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([1.0, 0.0, 1.0, 1.0])
    # half of the rows: |0.5 - 0.95|, half: |1 - 0.55|
    assert calibration_error(confidence, right).value == pytest.approx(45.0)
    found, bins = calibration(confidence, right, resamples=200, seed=0)
    assert found.low <= found.value <= found.high and found.n == 4
    assert [(one["low"], one["n"], one["accuracy"]) for one in bins if one["n"]] == [(50, 2, 100), (90, 2, 50)]
    assert len(bins) == BINS and bins[0] == {"low": 0, "high": 10, "confidence": None, "accuracy": None, "n": 0}


def test_who_is_right_as_often_as_sure_has_a_small_error() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.3, 1, 20_000)
    right = (draw.uniform(size=20_000) < confidence).astype(float)
    assert calibration_error(confidence, right).value < 1.5
    assert calibration_error(confidence, 1 - right).value > 30


def test_edges_belong_to_the_upper_bin() -> None:
    assert bins_of(np.array([0.0, 0.05, 0.5, 0.999, 1.0])).tolist() == [0, 0, 5, 9, 9]


def test_probabilities_of_labels_sum_to_one() -> None:
    shares = probabilities(np.array([[-1000.0, -1001.0], [-3.0, -3.0]]))
    assert shares.sum(1).tolist() == pytest.approx([1, 1]) and shares[1].tolist() == pytest.approx([0.5, 0.5])
    assert shares[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_clusters_widen_the_interval() -> None:
    confidence, right = np.full(100, 0.9), np.repeat([1.0, 0.0], 50)
    alone, _ = calibration(confidence, right, resamples=500, seed=0)
    together, _ = calibration(confidence, right, resamples=500, seed=0, clusters=np.repeat(range(10), 10).tolist())
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
