"""Paired comparisons against simulated data in which the truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from instructrec.measures.comparing import ALPHA, Contrast, advise, contrast, holm
from instructrec.measures.statistics import Statistic, bootstrap, mean_of, paired_difference
from instructrec.measures.student import quantile, two_sided


def drawn(
    rng: np.random.Generator,
    seeds: int,
    units: int,
    *,
    seed: float = 0.0,
    unit: float = 0.7,
    effect: float = 0.0,
    fresh: bool = False,
) -> tuple[np.ndarray, list[str], list[int]]:
    """Differences of `seeds` x `units` rows, the unit and the seed of each; the rest has a spread of 0.7.

    seed, unit: spread between seeds and between units.  fresh: each seed has units of its own.
    """
    shared = rng.normal(0, unit, (seeds, units) if fresh else (1, units))
    values = effect + rng.normal(0, seed, (seeds, 1)) + shared + rng.normal(0, 0.7, (seeds, units))
    names = [f"{one * fresh}-{other}" for one in range(seeds) for other in range(units)]
    return values.ravel(), names, [one for one in range(seeds) for _ in range(units)]


def found(values: np.ndarray, units: list[str], seeds: list[int]) -> Contrast:
    """The contrast of settings whose scores differ by `values`."""
    return contrast(mean_of(values + 10.0), mean_of(np.full(len(values), 10.0)), units, seeds)


def share(times: int, seeds: int, units: int, **more: Any) -> float:
    """How often a difference is found."""
    rng = np.random.default_rng(1)
    return sum(found(*drawn(rng, seeds, units, **more)).p < ALPHA for _ in range(times)) / times


# -- claims where there is nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "units", "more"),
    [
        (1, 40, {}),
        (3, 40, {}),
        (3, 40, {"seed": 0.1}),
        (3, 40, {"seed": 0.5}),
        (3, 40, {"fresh": True}),
        (3, 40, {"fresh": True, "seed": 0.5}),
        (5, 8, {"seed": 0.2}),
    ],
)
def test_a_difference_that_is_not_there_is_found_in_about_one_case_of_twenty(seeds: int, units: int, more: Any) -> None:
    rate = share(300, seeds, units, **more)
    assert 0.01 <= rate <= 0.095, rate  # 5% give or take 2.5 standard errors, and what three seeds can't tell


@pytest.mark.parametrize("seed", [0.0, 0.5])
def test_cells_taken_for_independent_find_far_too_much(seed: float) -> None:
    """What the module's text says: a bootstrap over (row, seed) has no idea of rows and seeds that last."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(100):
        values, units, seeds = drawn(rng, 3, 40, seed=seed)
        cells = list(zip(units, seeds, strict=True))
        one = paired_difference(mean_of(values), mean_of(np.zeros(len(values))), clusters=cells, resamples=300)
        wrong += one.low > 0 or one.high < 0
    assert wrong >= (10 if not seed else 40)


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    rng, any_raw, any_held = np.random.default_rng(2), 0, 0
    for _ in range(300):
        ps = [found(*drawn(rng, 1, 30)).p for _ in range(6)]
        any_raw += min(ps) < ALPHA
        any_held += min(holm(ps)) < ALPHA
    assert any_raw / 300 > 0.18 and any_held / 300 < 0.09


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


# -- what would decide ------------------------------------------------------------------------------------------------


def test_as_many_rows_as_advised_find_the_difference_four_times_in_five() -> None:
    few = found(*drawn(np.random.default_rng(3), 1, 20))
    wanted = advise(few, 0.1)
    assert wanted and wanted.units and wanted.seeds is None and not wanted.enough
    units = math.ceil(20 * wanted.units)
    spread = few.spread
    assert spread and spread.rest * 20 == pytest.approx(0.98, rel=0.5)  # 0.7² + 0.7²
    scale = math.sqrt(0.98 / (spread.rest * 20))  # the pilot's spread is itself drawn
    assert 0.74 <= share(300, 1, units, effect=0.1 * scale) <= 0.86


def test_as_many_seeds_as_advised_find_the_difference_four_times_in_five() -> None:
    """From a pilot so large that it knows the spread."""
    pilot = found(*drawn(np.random.default_rng(4), 200, 40, seed=0.3))
    assert pilot.spread and pilot.spread.seeds * 200 == pytest.approx(0.09, rel=0.25)
    small = replace(pilot, spread=_of(pilot, 3))
    plan = advise(small, 0.5)
    assert plan and plan.seeds and plan.units is None  # no number of rows makes three seeds agree
    assert 0.7 <= share(300, math.ceil(3 * plan.seeds), 40, seed=0.3, effect=0.5) <= 0.92


def _of(pilot: Contrast, seeds: int) -> Any:
    """The spread of the pilot as fewer seeds would have it."""
    spread = pilot.spread
    assert spread
    times = spread.num_seeds / seeds
    return replace(
        spread, seeds=spread.seeds * times, rest=spread.rest * times, num_seeds=seeds, df_rest=spread.df_rest / times
    )


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    least = float(np.mean([found(*drawn(rng, 1, 60)).detectable() or 0 for _ in range(20)]))
    assert 0.74 <= share(300, 1, 60, effect=least) <= 0.86


def test_rows_help_where_rows_differ_and_seeds_where_seeds_do() -> None:
    rng = np.random.default_rng(6)
    rows, seeds = found(*drawn(rng, 4, 60)), found(*drawn(rng, 4, 60, seed=0.6))
    one, two = advise(rows, 0.2), advise(seeds, 0.4)
    assert (
        one and one.units and one.seeds is None
    )  # what lasts over seeds stays: other seeds of the same rows don't help
    assert two and two.units is None and two.seeds and two.seeds > 1
    alone = found(*drawn(rng, 1, 60))
    assert alone.spread and alone.spread.seeds == 0 and advise(alone, 0.2).seeds is None  # type: ignore[union-attr]


# -- intervals --------------------------------------------------------------------------------------------------------


def test_one_seed_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(7)
    right = rng.random((2, 400)) < [[0.6], [0.5]]
    pair = [mean_of(100.0 * one, (0.0, 100.0)) for one in right]
    one = contrast(*pair, list(map(str, range(400))), [0] * 400)
    other = paired_difference(*pair, resamples=4000)
    assert one.value == pytest.approx(other.value)
    assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.06)


def test_a_ratio_is_treated_as_the_bootstrap_treats_it() -> None:
    """Nats by tokens: rows of many tokens weigh more."""
    rng = np.random.default_rng(8)
    tokens = rng.integers(1, 40, 300).astype(float)
    pair = [
        Statistic(np.stack([rng.gamma(2.0, scale, 300) * tokens, tokens], axis=1), lambda sums: sums[:, 0] / sums[:, 1])
        for scale in (0.5, 0.55)
    ]
    clusters = [str(number // 5) for number in range(300)]
    one = contrast(*pair, clusters, [0] * 300)
    other = paired_difference(*pair, resamples=4000, clusters=clusters)
    assert one.value == pytest.approx(other.value)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.1 * (other.high - other.low))


def test_rows_that_never_differ() -> None:
    same = mean_of([100.0, 0.0, 100.0], (0.0, 100.0))
    one = contrast(same, same, ["a", "b", "c"], [0, 0, 0])
    known = bootstrap(mean_of([0.0] * 3, (-100.0, 100.0)))
    assert (one.value, one.low, one.high, one.p) == (0.0, known.low, known.high, 1.0) and one.differing == 0


def test_three_rows_never_make_a_claim() -> None:
    """All in one direction by chance one time in four."""
    a, b = [0.0] * 75, [0.0] * 75
    a[0] = a[1] = a[2] = 100.0
    one = contrast(mean_of(a, (0.0, 100.0)), mean_of(b, (0.0, 100.0)), list(map(str, range(75))), [0] * 75)
    assert one.differing == 3 and one.p == 0.25
    whole = contrast(mean_of([100.0] * 9, (0.0, 100.0)), mean_of([0.0] * 9, (0.0, 100.0)), list("abcdefghi"), [0] * 9)
    assert (whole.value, whole.p) == (100.0, 2.0**-8) and whole.low < 100 == whole.high


def test_five_tasks_that_all_differ_can_make_a_claim() -> None:
    tasks = [str(row // 20) for row in range(100)]
    values = [30.0 + int(task) + row % 2 for row, task in enumerate(tasks)]
    one = contrast(mean_of(values), mean_of([0.0] * 100), tasks, [0] * 100)
    assert one.differing == 5 and one.p < 0.001 and one.df == 4


def test_one_row_says_nothing() -> None:
    one = contrast(mean_of([1.0, 2.0]), mean_of([0.0, 1.5]), ["a", "a"], [0, 1])
    assert (one.low, one.high, one.p, one.spread) == (0.75, 0.75, 1.0, None) and one.by_seed == (1.0, 0.5)
    assert one.df is None and one.detectable() is None and advise(one, 1.0) is None
    with pytest.raises(ValueError, match="want the same rows on both sides"):
        contrast(mean_of([1.0]), mean_of([1.0, 2.0]), ["a"], [0])


# -- Student's t ------------------------------------------------------------------------------------------------------


def test_student_by_known_values() -> None:
    """Table values; one degree of freedom is Cauchy's distribution."""
    for df, value in ((1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (1e6, 1.95997)):
        assert quantile(0.975, df) == pytest.approx(value, abs=1e-4)
        assert two_sided(value, df) == pytest.approx(0.05, abs=1e-5)
    assert two_sided(1.0, 1) == pytest.approx(0.5) and two_sided(0.0, 7.5) == 1.0 and two_sided(math.inf, 3) == 0.0
    assert quantile(0.1, 4) == -quantile(0.9, 4) == pytest.approx(-1.533206)
    with pytest.raises(ValueError, match="want more than 0"):
        two_sided(1.0, 0.0)


def test_student_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for df in (0.7, 1.0, 2.3, 9.0, 250.5):
        for t in (0.01, 0.9, 4.0, 60.0):
            assert two_sided(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-9)
        assert quantile(0.8, df) == pytest.approx(stats.t.ppf(0.8, df), rel=1e-9)
