"""Scores with error bars: the percentile bootstrap over rows, or over groups of rows.

Letters: N rows, C clusters, R resamples, K sums that a statistic is made of.

Every score here is a function of sums over rows (a mean: sum and count; BLEU: n-gram counts; macro F1: hits by
label), so a resample is one product of counts (R, C) with sums (C, K), and BLEU costs no more than a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z = 1.959963984540054  # 97.5% quantile of the normal distribution
BLOCK = 1 << 22  # drawn row numbers held in memory at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, its 95% interval and the rows it was measured on. `low == high` means that no interval is known."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Statistic:
    """A score as sums over rows.

    `sums` is (N, K); `finish` turns summed rows (R, K) into scores (R,); `bounds` are the least and greatest
    possible score, None where there are none; `note` says how it was computed (a sacrebleu signature).
    """

    sums: Floats
    finish: Callable[[Floats], Floats]
    bounds: tuple[float, float] | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.sums)

    def take(self, rows: Sequence[int]) -> Statistic:
        """The same statistic over some of the rows."""
        return replace(self, sums=self.sums[np.asarray(rows, dtype=np.intp)])

    @property
    def value(self) -> float:
        """The score over all rows."""
        return float(self.finish(self.sums.sum(axis=0, keepdims=True))[0])


def _ratio(sums: Floats) -> Floats:
    return sums[:, 0] / sums[:, 1]


def mean_of(values: Sequence[float] | Floats, bounds: tuple[float, float] | None = None) -> Statistic:
    """The mean of one number a row."""
    column = np.asarray(values, dtype=np.float64)
    return Statistic(np.stack([column, np.ones_like(column)], axis=1), _ratio, bounds)


def bootstrap(
    values: Statistic | Sequence[float] | Floats,
    *,
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate:
    """The score with its 95% percentile interval (Efron 1979) over resampled rows.

    `clusters` names the group of each row (the wording it came from): rows of one group are not independent, so
    whole groups are drawn. Where every resample gives the same score (all rows right, all wrong, or only one row)
    the bootstrap sees no spread at all; if the score has bounds, the interval then allows a share z²/(n + z²) of
    rows at either bound, which for 0% or 100% is exactly Wilson's interval, n counting rows or clusters. Without
    bounds it stays a point. Raises ValueError if there are no rows.
    """
    statistic = values if isinstance(values, Statistic) else mean_of(values)
    if not len(statistic):
        raise ValueError("no rows to compute a score from")
    sums = statistic.sums if clusters is None else _by_cluster(statistic.sums, clusters)
    least, greatest = statistic.bounds or (-np.inf, np.inf)  # clipped: rounding makes a BLEU of 100.00000000000004
    value = min(max(statistic.value, least), greatest)
    scores = np.clip(statistic.finish(_resampled(sums, resamples, seed)), least, greatest)
    low, high = (float(end) for end in np.percentile(scores, [2.5, 97.5]))
    if np.ptp(scores) <= 1e-9 * max(1.0, abs(value)):  # equal but for rounding
        low = high = value
        if statistic.bounds:
            unseen = Z**2 / (len(sums) + Z**2)
            low, high = value - unseen * (value - least), value + unseen * (greatest - value)
    return Estimate(value, low, high, len(statistic))


def paired_difference(
    a: Statistic | Sequence[float] | Floats,
    b: Statistic | Sequence[float] | Floats,
    *,
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate:
    """a - b over the same rows in the same order, with the interval of the difference (both see the same resamples).

    Raises ValueError if the numbers of rows differ.
    """
    first = a if isinstance(a, Statistic) else mean_of(a)
    second = b if isinstance(b, Statistic) else mean_of(b)
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same rows on both sides (got {len(first)} and {len(second)})")
    split = first.sums.shape[1]
    bounds = None
    if first.bounds and second.bounds:
        bounds = (first.bounds[0] - second.bounds[1], first.bounds[1] - second.bounds[0])
    both = Statistic(
        np.concatenate([first.sums, second.sums], axis=1),
        lambda sums: first.finish(sums[:, :split]) - second.finish(sums[:, split:]),
        bounds,
    )
    return bootstrap(both, resamples=resamples, seed=seed, clusters=clusters)


def _by_cluster(sums: Floats, clusters: Sequence[Hashable]) -> Floats:
    """(N, K) -> (C, K). Clusters keep the order of their first row, so equal names give equal draws."""
    if len(clusters) != len(sums):
        raise ValueError(f"want one cluster a row (got {len(clusters)} for {len(sums)} rows)")
    number: dict[Hashable, int] = {}
    places = [number.setdefault(name, len(number)) for name in clusters]
    total = np.zeros((len(number), sums.shape[1]))
    np.add.at(total, places, sums)
    return total


def _resampled(sums: Floats, resamples: int, seed: int) -> Floats:
    """(C, K) -> (R, K): sums over C rows drawn with replacement, R times, in blocks of bounded memory."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    step = max(1, BLOCK // size)
    blocks = []
    for start in range(0, resamples, step):
        rounds = min(step, resamples - start)
        drawn = rng.integers(size, size=(rounds, size)) + size * np.arange(rounds)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rounds * size).reshape(rounds, size)
        blocks.append(counts.astype(np.float64) @ sums)
    return np.concatenate(blocks)
