"""Intervals: by hand where they are known, by simulation where they are not."""

import time

import numpy as np
import pytest

from instructrec.measures.metrics import score
from instructrec.measures.statistics import Z, bootstrap, mean_of, paired_difference

PERCENT = (0.0, 100.0)


def test_same_seed_same_interval_other_seed_another() -> None:
    values = np.random.default_rng(1).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3).low != bootstrap(values, seed=4).low
    assert bootstrap(values).value == pytest.approx(values.mean())
    assert bootstrap(values).n == 50


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(10, 2, 400)
    estimate = bootstrap(values, resamples=4000)
    half = Z * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_ninety_five_percent_of_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for trial in range(300):
        estimate = bootstrap(mean_of(100.0 * (rng.random(60) < 0.3), PERCENT), resamples=400, seed=trial)
        held += estimate.low <= 30 <= estimate.high
    assert 0.90 <= held / 300 <= 0.98


@pytest.mark.parametrize(("value", "rows"), [(0.0, 75), (100.0, 75), (0.0, 1), (100.0, 4)])
def test_all_right_or_all_wrong_gives_wilsons_interval(value: float, rows: int) -> None:
    estimate = bootstrap(mean_of([value] * rows, PERCENT))
    share = value / 100  # Wilson 1927, equation for the score interval
    centre = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * np.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    assert (estimate.low, estimate.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)
    assert estimate.value == value


def test_equal_values_with_bounds_widen_and_without_bounds_stay_a_point() -> None:
    single = bootstrap(mean_of([40.0], PERCENT))
    share = Z**2 / (1 + Z**2)
    assert (single.low, single.high) == pytest.approx((40 - share * 40, 40 + share * 60))
    point = bootstrap([0.1] * 7)
    assert point.low == point.high == point.value == pytest.approx(0.1)


def test_clusters_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    groups = rng.random(20)
    values = np.repeat(groups, 10)  # ten equal rows a group: 20 independent numbers, not 200
    names = np.repeat(np.arange(20), 10).tolist()
    wide, narrow, fair = bootstrap(values, clusters=names), bootstrap(values), bootstrap(groups)
    assert wide.high - wide.low == pytest.approx(fair.high - fair.low, rel=1e-9)
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    assert wide.n == 200
    one = bootstrap(mean_of([100.0] * 10, PERCENT), clusters=["a"] * 5 + ["b"] * 5)
    assert one.low == pytest.approx(100 - 100 * Z**2 / (2 + Z**2))  # two groups, not ten rows


def test_paired_difference_sees_that_rows_agree() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 200)
    a, b = hard + 1 + rng.normal(0, 0.5, 200), hard + rng.normal(0, 0.5, 200)
    estimate = paired_difference(a, b)
    assert estimate.value == pytest.approx(a.mean() - b.mean())
    assert 0.8 < estimate.low < 1 < estimate.high < 1.2
    assert paired_difference(a, a).low == paired_difference(a, a).high == 0


def test_paired_difference_of_corpus_scores() -> None:
    right = [["one two three four five"], ["six seven eight nine ten"], ["red green blue white black"]]
    good = score([texts[0] for texts in right], right).statistics["bleu"]
    bad = score(["one two three four", "nothing at all like it", "red green blue pink black"], right).statistics["bleu"]
    estimate = paired_difference(good, bad)
    assert estimate.value == pytest.approx(good.value - bad.value)
    assert 0 < estimate.low < estimate.value < estimate.high <= 100


def test_difference_without_spread_is_not_certain() -> None:
    estimate = paired_difference(mean_of([100.0] * 20, PERCENT), mean_of([0.0] * 20, PERCENT))
    assert (estimate.value, estimate.high) == (100, 100)
    assert estimate.low == pytest.approx(100 - 200 * Z**2 / (20 + Z**2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "no rows to compute a score from"),
        (lambda: bootstrap([1.0, 2.0], clusters=["a"]), "want one cluster a row (got 1 for 2 rows)"),
        (
            lambda: paired_difference([1.0], [1.0, 2.0]),
            "a paired difference needs the same rows on both sides (got 1 and 2)",
        ),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def test_blocks_of_memory_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(40)
    whole = bootstrap(values)
    monkeypatch.setattr("instructrec.measures.statistics.BLOCK", 40 * 7)
    assert bootstrap(values) == whole


def test_a_thousand_resamples_of_a_thousand_rows_are_fast() -> None:
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(["red", "green", "blue", "cat"], 8)) for _ in range(1000)]
    statistic = score(words, [[words[row - 1]] for row in range(1000)]).statistics["bleu"]
    start = time.process_time()
    bootstrap(statistic)
    assert time.process_time() - start < 2.0  # 0.1 s on an idle core
