"""Statistics of choices by hand, and exchanges that leave a text well formed."""

from __future__ import annotations

import numpy as np
import pytest

from instructrec.evaluation.probes import probe
from instructrec.measures.bias import distance_from_even, distance_from_truth, exchanges, position_choices
from instructrec.measures.statistics import bootstrap


def test_labels_spread_as_the_right_ones_have_no_bias() -> None:
    assert distance_from_truth(["a", "b"], ["b", "a"], ["a", "b"]).value == 0
    assert distance_from_truth(["a"] * 4, ["a", "a", "b", "c"], ["a", "b", "c"]).value == 50
    assert distance_from_truth(["a", "x"], ["b", "b"], ["a", "b", "x"]).value == 100
    found = bootstrap(distance_from_truth(["a"] * 4, ["a", "a", "b", "c"], ["a", "b", "c"]))
    assert found.low <= 50 <= found.high and found.n == 4


def test_distance_from_even() -> None:
    assert distance_from_even(np.array([[0.5, 0.5], [0.5, 0.5]])).value == 0
    assert distance_from_even(np.array([[1.0, 0.0], [1.0, 0.0]])).value == 50
    assert distance_from_even(np.array([[1.0, 0.0], [0.0, 1.0]])).value == 0  # even on average


def test_places_and_orders() -> None:
    stays = np.array([[0, 1, 2, 3], [2, 3, 0, 1]], dtype=float)  # one option, wherever it stands
    first = np.zeros((2, 4))  # always the first place
    even, changes = position_choices(stays)
    assert (even.value, changes.value) == (0, 0)
    even, changes = position_choices(first)
    assert (even.value, changes.value) == (75, 100)


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("genders", "He told his sister that she owes him.", "She told her brother that he owes her."),
        ("genders", "It is for her. Her lamp is new.", "It is for him. His lamp is new."),
        ("genders", "James met Anna; mark my words.", "Mary met John; mark my words."),
        ("names", "Emma and James met.", "Mary and John met."),
        ("cities", "From London to Rome", "From Paris to Berlin"),
        ("names", "The house is red.", None),
        ("cities", "Comparison of prices", None),
    ],
)
def test_exchanges_in_english(kind: str, text: str, wanted: str | None) -> None:
    found = exchanges(text, probe("names")["en"], kind)
    assert (found and found(text)) == wanted


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("genders", "他和妈妈在家，其他人不在。", "她和爸爸在家，其他人不在。"),
        ("names", "小明在北京。", "李明在北京。"),
        ("cities", "小明在北京。", "小明在上海。"),
        ("genders", "天气很好。", None),
    ],
)
def test_exchanges_in_chinese(kind: str, text: str, wanted: str | None) -> None:
    found = exchanges(text, probe("names")["zh"], kind)
    assert (found and found(text)) == wanted


def test_our_own_rows_name_somebody_somewhere() -> None:
    rows = probe("names")["rows"]
    for row in rows:
        lists = probe("names")["zh" if "\u4e00" <= row["input"][0] <= "\u9fff" else "en"]
        for kind in ("names", "genders", "cities"):
            found = exchanges(row["input"], lists, kind)
            assert found is not None and found(row["input"]) != row["input"], (kind, row["input"])


def test_options_and_general_questions_are_whole() -> None:
    for questions in probe("options").values():
        assert all(len(set(one["options"])) == 4 for one in questions)
    general = probe("general")
    assert sum(map(len, general.values())) == 60 and set(general) == {
        "knowledge",
        "arithmetic",
        "language",
        "instructions",
    }
    assert len({row["q"] for rows in general.values() for row in rows}) == 60 and all(
        row["a"] for rows in general.values() for row in rows
    )
