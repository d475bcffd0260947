"""Which of two settings is better on the same rows, how sure that is, and what would decide it.

N rows of all seeds together, U units (tasks or rows: what other data would bring others of), S seeds of training, C
cells (a unit in a seed), K sums of a statistic.

The difference of two scores is a function of sums over rows. What each cell adds to it (its influence) comes from the
delete-one jackknife, so that BLEU is treated as a mean is. The variance of the difference then has three parts:

    units   what a unit has in common over seeds (this row is easier for one setting, whatever the seed),
    seeds   what a seed has in common over units (this run of one setting came out well),
    rest    what is left to a cell alone.

With the sum of squares of the influences, summed by seed (V_seeds), by unit (V_units) and left over (V_rest):
V = max(V_seeds, V_rest) + max(0, V_units - V_rest), degrees of freedom by Satterthwaite (1946). Where all seeds have
the same rows this is nearly the analysis of several readers and cases (Hillis 2007) and the two-way clusters of
Cameron, Gelbach & Miller (2011); other than there no part falls below 0, since seeds are few: V_seeds alone would be
too small as often as too large. A bootstrap over cells takes every cell for independent: with three seeds on the same
rows it finds a difference where there is none far more often than in 5% of cases (tests/measures/test_comparing.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .statistics import Floats, Statistic, Z
from .student import quantile, two_sided

ALPHA = 0.05
POWER = 0.8
MOST = 10_000  # times as many rows or seeds: beyond it, "no number of them"
OVERLAP = 5  # degrees of freedom from units that are in several seeds; with fewer, rest is taken from all cells


@dataclass(frozen=True)
class Spread:
    """The variance of a difference and its parts: `units`, `seeds`, `rest` (see the module), and how many of each.

    seeded: whether seeds differ by more than `rest` explains.  df_rest: degrees of freedom behind `rest`.
    """

    units: float
    seeds: float
    rest: float
    num_units: int
    num_seeds: int
    df_rest: float

    @property
    def seeded(self) -> bool:
        """Whether seeds scatter more than their cells do."""
        return self.seeds > 0

    def at(self, units: float = 1.0, seeds: float = 1.0) -> tuple[float, float]:
        """(variance, degrees of freedom) with so many times the units of each seed and so many times the seeds."""
        between, rest, lasting = self.seeds / seeds, self.rest / (seeds * units), self.units / units
        base = between + rest
        df_base = self.num_seeds * seeds - 1 if self.seeded else self.df_rest * seeds * units
        total = base + lasting
        if not total:
            return 0.0, df_base
        parts = base**2 / max(df_base, 1e-9) + lasting**2 / max(self.num_units * units - 1, 1e-9)
        return total, total**2 / parts


@dataclass(frozen=True)
class Contrast:
    """a - b over the same rows: value, 95% interval, p, the spread behind it. df is None where nothing is known.

    n: rows.  differing: units in which a and b differ at all.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    differing: int
    spread: Spread | None
    by_seed: tuple[float, ...]

    @property
    def df(self) -> float | None:
        """Degrees of freedom."""
        return self.spread.at()[1] if self.spread else None

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float | None:
        """The true difference that this many rows and seeds show with probability `power`."""
        return None if self.spread is None else _reach(*self.spread.at(), alpha, power)


@dataclass(frozen=True)
class Advice:
    """What would show a difference of `effect`: so many times the units alone, or the seeds alone; None where no number
    of them would. enough: the comparison as it is has the power."""

    effect: float
    units: float | None
    seeds: float | None
    enough: bool


def contrast(
    a: Statistic,
    b: Statistic,
    units: Sequence[Hashable],
    seeds: Sequence[int],
) -> Contrast:
    """a - b over N rows in the same order; `units` and `seeds` name those of each row.

    Raises ValueError where the numbers of rows differ or there are none.
    """
    if not len(a) == len(b) == len(units) == len(seeds) or not len(a):
        raise ValueError(f"want the same rows on both sides (got {len(a)}, {len(b)}, {len(units)}, {len(seeds)})")
    split = a.sums.shape[1]
    sums = np.concatenate([a.sums, b.sums], axis=1)

    def finish(total: Floats) -> Floats:
        return a.finish(total[:, :split]) - b.finish(total[:, split:])

    value = float(finish(sums.sum(axis=0, keepdims=True))[0])
    cells: dict[tuple[Hashable, int], int] = {}
    of_cell = [cells.setdefault(cell, len(cells)) for cell in zip(units, seeds, strict=True)]
    by_cell = np.zeros((len(cells), sums.shape[1]))
    np.add.at(by_cell, of_cell, sums)
    names = sorted(set(seeds))
    of_seed = np.array([names.index(seed) for _, seed in cells])
    by_seed = tuple(
        float(finish(by_cell[of_seed == place].sum(axis=0, keepdims=True))[0]) for place in range(len(names))
    )
    differing = len({unit for (unit, _), other in zip(cells, _differing(by_cell, split), strict=True) if other})
    found = Contrast(value, value, value, 1.0, len(a), differing, None, by_seed)
    if len(cells) <= len(names):
        return found
    influence = _influence(by_cell, finish, value)
    unit_names = {name: place for place, name in enumerate(dict.fromkeys(unit for unit, _ in cells))}
    spread = _spread(influence, np.array([unit_names[unit] for unit, _ in cells]), of_seed)
    variance, df = spread.at()
    if variance <= 1e-18 * max(1.0, value * value):
        return _without_spread(found, a, b, len(unit_names))
    half = quantile(1 - ALPHA / 2, df) * math.sqrt(variance)
    p = two_sided(value / math.sqrt(variance), df)
    # Where most rows come out the same, t is too sure: five that differ, all in one direction, do so by chance one time
    # in sixteen.
    if differing < len(unit_names):
        p = max(p, min(1.0, 2.0 ** (1 - differing)))
    return replace(found, low=value - half, high=value + half, p=p, spread=spread)


def _differing(by_cell: Floats, split: int) -> list[bool]:
    """Of each cell, whether the two settings have other sums; where those can't be compared, yes."""
    one, other = by_cell[:, :split], by_cell[:, split:]
    if one.shape != other.shape:
        return [True] * len(by_cell)
    return [bool(row.any()) for row in ~np.isclose(one, other)]


def _influence(by_cell: Floats, finish: Callable[[Floats], Floats], value: float) -> Floats:
    """(C, K) -> (C,): what each cell adds to the difference; sums to 0."""
    count = len(by_cell)
    without = by_cell.sum(axis=0) - by_cell
    found = (value - finish(without)) * (count - 1) / count
    found = np.nan_to_num(np.asarray(found, dtype=np.float64))  # one cell held all tokens of a set
    return np.asarray(found - found.mean())


def _spread(influence: Floats, of_unit: np.ndarray, of_seed: np.ndarray) -> Spread:
    count, num_units, num_seeds = len(influence), int(of_unit.max()) + 1, int(of_seed.max()) + 1
    cells_of_seed = np.bincount(of_seed, minlength=num_seeds)
    sums_of_seed = np.bincount(of_seed, weights=influence, minlength=num_seeds)
    inner = influence - (sums_of_seed / cells_of_seed)[of_seed]
    times = np.bincount(of_unit, minlength=num_units)
    sums_of_unit = np.bincount(of_unit, weights=inner, minlength=num_units)
    shared = int((times - 1).sum()) - (num_seeds - 1)
    df_rest: float = count - num_seeds
    rest = count / df_rest * float((inner**2).sum())
    units = 0.0
    if num_seeds > 1 and num_units > 1 and shared >= 1:
        if shared >= OVERLAP:
            df_rest = shared
            rest = count / df_rest * float((inner**2).sum() - (sums_of_unit**2 / times).sum())
        units = max(0.0, num_units / (num_units - 1) * float((sums_of_unit**2).sum()) - rest)
    between = num_seeds / (num_seeds - 1) * float((sums_of_seed**2).sum()) if num_seeds > 1 else 0.0
    return Spread(units, max(0.0, between - rest), max(0.0, rest), num_units, num_seeds, df_rest)


def _without_spread(found: Contrast, a: Statistic, b: Statistic, num_units: int) -> Contrast:
    """Every unit has the same difference: as `statistics.bootstrap` does, z²/(n + z²) may be others, unseen."""
    p = 1.0 if not found.value else min(1.0, 2.0 ** (1 - found.differing))
    if not (a.bounds and b.bounds):
        return replace(found, p=p)
    least, greatest = a.bounds[0] - b.bounds[1], a.bounds[1] - b.bounds[0]
    unseen = Z**2 / (num_units + Z**2)
    low, high = found.value - unseen * (found.value - least), found.value + unseen * (greatest - found.value)
    return replace(found, low=low, high=high, p=p)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values so adjusted that the chance of any false claim among all of them is kept (Holm 1979)."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    adjusted, most = [1.0] * len(ps), 0.0
    for place, number in enumerate(order):
        most = max(most, min(1.0, (len(ps) - place) * ps[number]))
        adjusted[number] = most
    return adjusted


def advise(found: Contrast, effect: float, alpha: float = ALPHA, power: float = POWER) -> Advice | None:
    """What would show a true difference of `effect` with probability `power`; None where no spread is known."""
    spread = found.spread
    if spread is None:
        return None

    def times(axis: str) -> float | None:
        def enough(factor: float) -> bool:
            variance, df = spread.at(**{axis: factor})
            return _reach(variance, df, alpha, power) <= effect

        if not enough(MOST):
            return None
        low, high = 0.0, 1.0
        while not enough(high):
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    enough_now = _reach(*spread.at(), alpha, power) <= effect
    # One seed says nothing of others: how much they scatter isn't known.
    return Advice(effect, times("units"), times("seeds") if spread.num_seeds > 1 else None, enough_now)


def _reach(variance: float, df: float, alpha: float, power: float) -> float:
    return (quantile(1 - alpha / 2, df) + quantile(power, df)) * math.sqrt(variance)
