"""The learning rate as a list, and which checkpoint is best."""

from __future__ import annotations

import math

import pytest

from instructrec.training.monitor import Monitor
from instructrec.training.schedule import SCHEDULES, learning_rate


@pytest.mark.parametrize(("total", "warmup"), [(20, 0.1), (7, 0.5), (1, 0.0), (1, 0.9), (100, 0.03)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_follow_the_closed_formula(total: int, warmup: float, schedule: str) -> None:
    rising = math.ceil(total * warmup)
    down = total - rising
    decay = {
        "cosine": lambda n: (1 + math.cos(math.pi * n / down)) / 2,
        "linear": lambda n: 1 - n / down,
        "constant": lambda n: 1.0,
    }[schedule]
    want = [(n + 1) / rising for n in range(rising)] + [decay(n) for n in range(down)]
    got = [learning_rate(step, total, 3e-4, warmup, schedule) for step in range(total)]
    assert got == pytest.approx([3e-4 * factor for factor in want], rel=1e-12)
    assert max(got) == pytest.approx(3e-4) and min(got) > 0


def test_rates_by_hand() -> None:
    assert [learning_rate(step, 4, 8.0, 0.5, "linear") for step in range(4)] == [4.0, 8.0, 8.0, 4.0]


def looks(monitor: Monitor, values: list[float]) -> list[bool]:
    return [monitor.update(step + 1, {"rows": {"loss": value}}) for step, value in enumerate(values)]


def test_the_best_of_a_canned_sequence() -> None:
    monitor = Monitor({"rows": 1.0}, patience=2)
    assert looks(monitor, [3.0, 2.0, 2.5, 1.5, 1.5]) == [True, True, False, True, False]
    assert (monitor.best, monitor.best_step, monitor.misses, monitor.exhausted) == (1.5, 4, 1, False)
    assert not monitor.update(6, {"rows": {"loss": math.nan}})
    assert monitor.exhausted and monitor.best_step == 4


def test_patience_zero_never_stops() -> None:
    monitor = Monitor({"rows": 1.0}, patience=0)
    looks(monitor, [1.0] + [2.0] * 50)
    assert not monitor.exhausted and monitor.best_step == 1


def test_the_stated_mix_decides() -> None:
    monitor = Monitor({"unseen": 3.0, "seen": 1.0}, metric="accuracy", higher_is_better=True)
    look = {"unseen": {"accuracy": 40.0, "loss": 9.0}, "seen": {"accuracy": 80.0, "loss": 9.0}}
    assert monitor.watched(look) == 50.0
    assert monitor.update(1, look) and not monitor.update(2, look)
    better = {"unseen": {"accuracy": 60.0}, "seen": {"accuracy": 40.0}}
    assert monitor.update(3, better) and monitor.best == 55.0
    assert monitor.describe() == "accuracy on held-out rows (3 × unseen + 1 × seen), highest is best"


def test_a_first_look_that_is_no_number_is_never_the_best() -> None:
    monitor = Monitor({"rows": 1.0})
    assert looks(monitor, [math.nan, math.inf, 5.0]) == [False, False, True]
    assert monitor.best_step == 3


def test_state_survives_json() -> None:
    import json

    for values in ([], [3.0, 2.0, 2.5]):
        monitor, again = Monitor({"rows": 1.0}), Monitor({"rows": 1.0})
        looks(monitor, values)
        again.restore(json.loads(json.dumps(monitor.state())))
        assert str(again) == str(monitor)
