"""What more rows would do: exact on curves whose next point is known, honest where nothing can be told."""

from __future__ import annotations

import numpy as np
import pytest

from instructrec.measures.curve import learning_curve, with_floor, without_floor
from instructrec.measures.statistics import Estimate


def rows(
    levels: tuple[float, float, float], noise: float, count: int = 300, own: float = 0.0
) -> list[list[tuple[float, int]]]:
    """Losses of the same rows in three runs: a hardness of each row, and noise of each run and row."""
    draw = np.random.default_rng(1)
    hardness, tokens = draw.normal(0, noise, count), draw.integers(1, 20, count)
    return [
        [(float((level + hard + draw.normal(0, own)) * n), int(n)) for hard, n in zip(hardness, tokens, strict=True)]
        for level in levels
    ]


def curve(levels: tuple[float, float, float], noise: float = 0.5, own: float = 0.0, **more: object) -> object:
    losses = rows(levels, noise, own=own)
    return learning_curve(losses, ["seen"] * len(losses[0]), {"seen": 1.0}, **more)  # type: ignore[arg-type]


def test_both_laws_are_exact_on_their_own_curves() -> None:
    free = np.array([[3.0 * 2.0 ** (-0.4 * k)] for k in range(4)])
    assert without_floor(free[:3]) == pytest.approx(free[2] - free[3])
    law = np.array([[1 + 0.8 * 0.6**k] for k in range(4)])
    assert with_floor(law[:3]) == pytest.approx(law[2] - law[3])
    assert with_floor(np.array([[2.0], [1.9], [1.95]])) == pytest.approx(-0.05)
    assert with_floor(np.array([[2.0], [2.1], [2.0]])) == pytest.approx(0.1)
    nearly = np.array([[1.0], [0.06], [0.01]])
    assert 0 < with_floor(nearly) <= 0.01 and 0 < without_floor(nearly) < 0.01


def test_noise_that_all_runs_share_does_not_widen_the_interval() -> None:
    found = curve((2.0, 1.6, 1.36))
    assert found.next_doubling.value == pytest.approx(0.24**2 / 0.4)
    assert found.next_doubling.low == pytest.approx(0.144) and 0.2 < found.next_doubling.high < 0.3
    assert found.last_doubling.value == pytest.approx(0.24)
    assert found.last_doubling.high - found.last_doubling.low < 1e-9 < 0.05 < found.losses[2].high - found.losses[2].low
    high = found.next_doubling.high
    assert found.sentence == (
        f"Twice the rows would lower the loss on held-out rows by 0.144 [0.144, {high:.3f}]; from half of the rows to all of "
        "them it fell by 0.240 [0.240, 0.240]."
    )


def test_nothing_is_claimed_where_nothing_can_be_told() -> None:
    found = curve((1.0, 1.0, 1.0), own=1.0)
    assert found.next_doubling.low < 0 < found.next_doubling.high and not found.helps
    assert found.sentence.startswith("Twice the rows: not distinguishable from nothing (")
    worse = curve((1.0, 1.2, 1.4), own=0.05)
    assert worse.helps and worse.sentence.startswith("Twice the rows would raise the loss on held-out rows by 0.2")


def test_sets_are_weighed_as_in_training() -> None:
    losses = [[(3.0 - run, 1)] * 4 + [(9.0 - 2 * run, 1)] * 2 for run in range(3)]
    names = ["seen"] * 4 + ["unseen_tasks"] * 2
    found = learning_curve(losses, names, {"seen": 1.0, "unseen_tasks": 3.0, "absent": 5.0})
    assert [one.value for one in found.losses] == pytest.approx([(3 + 27) / 4, (2 + 21) / 4, (1 + 15) / 4])
    assert found.losses[0].n == 6


def test_rows_of_one_cluster_are_drawn_together() -> None:
    losses = rows((2.0, 1.5, 1.2), 0.2, 60, own=0.5)
    alone = learning_curve(losses, ["seen"] * 60, {"seen": 1.0})
    twice = [[row for row in one for _ in range(4)] for one in losses]
    groups = [number for number in range(60) for _ in range(4)]
    found = learning_curve(twice, ["seen"] * 240, {"seen": 1.0}, clusters=groups)
    careless = learning_curve(twice, ["seen"] * 240, {"seen": 1.0})

    def width(estimate: Estimate) -> float:
        return estimate.high - estimate.low

    assert width(found.last_doubling) == pytest.approx(width(alone.last_doubling), rel=0.02)
    assert width(careless.last_doubling) < 0.7 * width(found.last_doubling)


def test_the_same_rows_are_wanted() -> None:
    with pytest.raises(ValueError, match="want the same rows for each of 3 runs"):
        learning_curve([[(1.0, 1)]] * 2, ["seen"], {"seen": 1.0})
