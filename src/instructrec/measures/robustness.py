"""What damage does to scores: the same rows clean and damaged, row by row.

    performance drop rate   PDR = 1 - score damaged / score clean (PromptBench, arXiv 2306.04528), here in percent
    worst case              each row counts by the worst of its answers, the clean one among them
    flip rate               share of rows whose answer is another one, right or wrong

N rows, K sums that a statistic is made of. Intervals are paired bootstraps: both sides see the same resamples, of rows
or of groups of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from .metrics import PERCENT
from .statistics import Estimate, Floats, Statistic, bootstrap, mean_of, paired_difference
from .text import normalise


def drop_rate(
    clean: Statistic,
    damaged: Statistic,
    *,
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate | None:
    """PDR in percent of the clean score, over the same rows in the same order; below 0 where damage helps. None where
    the interval of the clean score reaches 0: a share of next to nothing says nothing. A resample without any clean
    score counts as no drop. Raises ValueError if the numbers of rows differ."""
    if len(clean) != len(damaged):
        raise ValueError(f"want the same rows clean and damaged (got {len(clean)} and {len(damaged)})")
    if bootstrap(clean, resamples=resamples, seed=seed, clusters=clusters).low <= 0:
        return None
    split = clean.sums.shape[1]

    def finish(sums: Floats) -> Floats:
        before, after = clean.finish(sums[:, :split]), damaged.finish(sums[:, split:])
        some = before > 0
        return np.where(some, 100.0 * (1.0 - after / np.where(some, before, 1.0)), 0.0)

    both = Statistic(np.concatenate([clean.sums, damaged.sums], axis=1), finish)
    found = bootstrap(both, resamples=resamples, seed=seed, clusters=clusters)
    if found.low < found.high:
        return found
    # No resample differs. How far the difference could be off is known from its bounds.
    apart = paired_difference(damaged, clean, resamples=resamples, seed=seed, clusters=clusters)
    scale = 100.0 / clean.value
    return replace(found, low=found.value - scale * (apart.high - apart.value),
                   high=found.value + scale * (apart.value - apart.low))  # fmt: skip


def row_scores(statistic: Statistic) -> Floats:
    """The score of each row by itself, [N]."""
    return statistic.finish(statistic.sums)


def worst_case(answers: Sequence[Statistic]) -> Statistic:
    """The same score with each row's worst answer. answers: one statistic over the same rows for each way in which the
    rows were asked; of equals the first counts. Raises ValueError if there are none or rows differ."""
    if len({len(one) for one in answers}) != 1:
        raise ValueError("want the same rows for each way of asking")
    worst = np.stack([row_scores(one) for one in answers]).argmin(0)  # [N]
    sums = np.stack([one.sums for one in answers])  # [ways, N, K]
    return replace(answers[0], sums=sums[worst, np.arange(len(worst))])


def flips(clean: Sequence[str], damaged: Sequence[str]) -> Statistic:
    """Percent of rows that are answered otherwise, after the normal form of exact match."""
    pairs = zip(clean, damaged, strict=True)
    return mean_of([100.0 * (normalise(before) != normalise(after)) for before, after in pairs], PERCENT)
