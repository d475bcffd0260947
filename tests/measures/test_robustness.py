"""Drop rates, flips and the worst case, against figures by hand."""

from __future__ import annotations

import pytest

from instructrec.measures.metrics import PERCENT, Answers, chrf
from instructrec.measures.robustness import drop_rate, flips, row_scores, worst_case
from instructrec.measures.statistics import mean_of


def share(*right: int):  # type: ignore[no-untyped-def]
    return mean_of([100.0 * one for one in right], PERCENT)


def test_drop_rate_is_what_is_lost_of_the_clean_score() -> None:
    clean, damaged = share(*[1] * 8, 0, 0), share(*[1] * 6, *[0] * 4)
    found = drop_rate(clean, damaged)
    assert found and found.value == pytest.approx(100 * (1 - 0.6 / 0.8)) and found.n == 10
    assert 0 <= found.low < found.value < found.high <= 100
    helped = drop_rate(damaged, clean)
    assert helped and helped.value == pytest.approx(-100 / 3)


def test_no_share_of_next_to_nothing() -> None:
    assert drop_rate(share(*[0] * 10), share(*[0] * 10)) is None
    assert drop_rate(share(1, *[0] * 49), share(*[0] * 50)) is None


def test_no_difference_is_not_certainty() -> None:
    clean = share(*[1] * 10)
    found = drop_rate(clean, clean)
    assert found and found.value == 0 and found.low < 0 < found.high
    assert drop_rate(clean, share(*[0] * 10)).high == pytest.approx(100)  # type: ignore[union-attr]


def test_drop_rate_by_clusters_is_wider() -> None:
    clean, damaged = share(*[1] * 40), share(*[1] * 20, *[0] * 20)
    rows = drop_rate(clean, damaged)
    groups = drop_rate(clean, damaged, clusters=[row // 10 for row in range(40)])
    assert rows and groups and groups.high - groups.low > rows.high - rows.low


def test_wrong_lengths() -> None:
    with pytest.raises(ValueError, match=r"got 2 and 1"):
        drop_rate(share(1, 1), share(1))
    with pytest.raises(ValueError, match="same rows"):
        worst_case([share(1), share(1, 0)])


def test_the_worst_answer_of_each_row_counts() -> None:
    assert worst_case([share(1, 1, 0, 1), share(1, 0, 1, 1), share(0, 1, 1, 1)]).value == pytest.approx(25)
    assert worst_case([share(1, 0)]).value == 50


def test_the_worst_case_of_a_score_over_whole_sets() -> None:
    references = [["the red house"], ["a green lamp"]]
    good = chrf(Answers([one[0] for one in references], references))
    mixed = chrf(Answers(["the red house", "nothing"], references))
    other = chrf(Answers(["zzz", "a green lamp"], references))
    assert row_scores(good) == pytest.approx([100, 100])
    both = worst_case([good, mixed, other])
    assert both.value == pytest.approx(chrf(Answers(["zzz", "nothing"], references)).value)


def test_flips_go_by_the_normal_form() -> None:
    assert flips(["Red.", "blue", "x"], ["red", "green", "x "]).value == pytest.approx(100 / 3)
