"""Loss by the number of rows trained on, and what more rows would do: from runs on a quarter, half and all of them.

N held-out rows, S sets of them, R resamples, K columns that the rows' sums are made of.

Two extrapolations of the next doubling, of the falls d1 (a quarter to half) and d2 (half to all) to the loss l: a power
law with a floor, loss = c + a rows^-k, falls by equal shares at each doubling and gives d2² / d1; one without, loss =
a rows^-k, is a line through the logarithms and gives l (1 - sqrt(l / loss at a quarter)). Where the falls do not
shrink, no floor is in sight and d2 stands for the first. Neither leads below 0. The interval reaches over both, each
resampled by rows; that another seed of training moves the points is not in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import Estimate, Floats, Statistic, bootstrap

SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Curve:
    """losses: of each share, weighted over the sets, with intervals.  last_doubling: how far the loss fell from half of
    the rows to all.  next_doubling: how far it would fall with twice the rows."""

    losses: tuple[Estimate, ...]
    last_doubling: Estimate
    next_doubling: Estimate

    @property
    def helps(self) -> bool:
        """Whether more rows can be told from nothing."""
        return self.next_doubling.low > 0 or self.next_doubling.high < 0

    @property
    def sentence(self) -> str:
        """What a reader is told."""
        gain, last = self.next_doubling, self.last_doubling
        seen = f"from half of the rows to all of them it fell by {_spelled(last)}"
        if not self.helps:
            return f"Twice the rows: not distinguishable from nothing ({_spelled(gain)} lower loss; {seen})."
        verb = "lower" if gain.value > 0 else "raise"
        shown = gain if gain.value > 0 else Estimate(-gain.value, -gain.high, -gain.low, gain.n)
        return f"Twice the rows would {verb} the loss on held-out rows by {_spelled(shown)}; {seen}."


def _spelled(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def without_floor(losses: Floats) -> Floats:
    """Fall of the next doubling, [R], of losses [3, R] on a quarter, half and all of the rows: a line in logarithms."""
    safe = np.maximum(losses, 1e-12)
    return losses[2] * (1 - np.sqrt(safe[2] / safe[0]))


def with_floor(losses: Floats) -> Floats:
    """The same by a power law that ends at a floor."""
    first, last = losses[0] - losses[1], losses[1] - losses[2]
    shrinking = (first > 0) & (last > 0) & (last < first)
    return np.minimum(np.where(shrinking, last * last / np.where(shrinking, first, 1.0), last), losses[2])


def learning_curve(
    losses: Sequence[Sequence[tuple[float, int]]],
    sets: Sequence[str],
    weights: Mapping[str, float],
    *,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """losses: for each of `SHARES` the (nats, tokens) of the same N rows in the same order.  sets: the set of each row.
    weights: of each set; clusters: of rows that are not independent. Raises ValueError where rows are not the same."""
    if len(losses) != len(SHARES) or any(len(one) != len(sets) for one in losses):
        raise ValueError(f"want the same rows for each of {len(SHARES)} runs")
    names = [name for name in weights if name in set(sets)]
    share = np.array([weights[name] for name in names]) / sum(weights[name] for name in names)
    columns: list[Floats] = []  # for each run and set: nats, tokens
    for one in losses:
        table = np.array(one, dtype=np.float64)
        for name in names:
            inside = np.array([found == name for found in sets])[:, None]
            columns.append(table * inside)
    sums = np.concatenate(columns, axis=1)

    def by_share(found: Floats) -> Floats:
        parts = found.reshape(len(found), len(SHARES), len(names), 2)
        tokens = np.maximum(parts[..., 1], 1.0)  # a resample may draw none of a small set
        means: Floats = (parts[..., 0] / tokens) @ share
        return means.T

    def estimate(finish: object) -> Estimate:
        given = {"resamples": resamples, "seed": seed, "clusters": clusters}
        return bootstrap(Statistic(sums, lambda found: finish(by_share(found))), **given)  # type: ignore[operator, arg-type]

    free, bound = estimate(without_floor), estimate(with_floor)
    ends = [value for one in (free, bound) for value in (one.low, one.value, one.high)]
    reach = Estimate(bound.value, min(ends), max(ends), bound.n)
    return Curve(
        tuple(estimate(lambda found, place=place: found[place]) for place in range(len(SHARES))),
        estimate(lambda found: found[1] - found[2]),
        reach,
    )
