"""Each checker passes what keeps its constraint and fails what does not; our own rows can be kept."""

from __future__ import annotations

from typing import Any

import pytest

from instructrec.evaluation.probes import probe
from instructrec.measures.constraints import CHECKS, characters, kept, meets, sentences, within, words

CASES: list[tuple[str, Any, list[str], list[str]]] = [
    ("sentences", "2", ["One. Two!", "一句。两句？", "One is 3.5 m long. Two"], ["One.", "One. Two. Three."]),
    ("words", "<=3", ["one two three", "don't go"], ["one two three four"]),
    ("characters", "2-3", ["是的。", "a b c"], ["是", "四个字了"]),
    ("lines", "2", ["a\n\nb"], ["a", "a\nb\nc"]),
    ("contains", ["sea", "blue"], ["The Sea is BLUE"], ["The sea"]),
    ("excludes", ["sea"], ["a lake"], ["the SEA"]),
    ("starts_with", "Today", ["Today it rains"], ["today it rains", "It rains Today"]),
    ("ends_with", "!", ["yes!"], ["yes! no"]),
    ("lower_case", "yes", ["all low 3"], ["Not low", "123"]),
    ("upper_case", "yes", ["ALL UP"], ["Not UP", "北京"]),
    ("no_digits", "yes", ["one"], ["1 one"]),
    ("only_digits", "yes", ["11", "11."], ["eleven", "11 apples"]),
    ("json_keys", ["name", "age"], ['{"name": "A", "age": 3}', '```json\n{"age": 3, "name": 1}\n```'],
     ['{"name": 1}', '{"name": 1, "age": 2, "x": 3}', 'Here: {"name": 1, "age": 2}', "[1]", "no"]),
    ("list_items", "2", ["- a\n- b", "1. a\n2. b", "一、甲\n二、乙"], ["a\nb", "- a", "List:\n- a\n- b"]),
    ("separated", "3 ;", ["a; b; c", "a;b;c."], ["a; b", "a, b, c", "a;;c"]),
    ("order", ["cat", "tree", "rain"], ["A cat, a tree and rain"], ["tree cat rain", "cat tree"]),
    ("times", "3 moon", ["moon moon moon"], ["moon moon", "moon moon moons moon moon"]),
    ("times", "2 月亮", ["月亮月亮"], ["月亮"]),
    ("one_of", ["yes"], ["Yes.", "“yes”"], ["yes it is", "no"]),
    ("language", "zh", ["你好"], ["hello", "!!"]),
    ("language", "en", ["hello"], ["你好"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "good", "bad"), CASES)
def test_a_checker_can_pass_and_fail(kind: str, value: Any, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not meets(kind, value, text)] == []
    assert [text for text in bad if meets(kind, value, text)] == []
    assert not meets(kind, value, "  ")


def test_every_checker_is_tested_and_used() -> None:
    assert {kind for kind, *_ in CASES} == set(CHECKS)
    used = {kind for rows in probe("constraints").values() for row in rows for check in row["checks"] for kind in check}
    assert used == set(CHECKS)


def test_counting() -> None:
    assert words("I don't like 北京 well-made tea.") == 7 and characters("你好, a1!") == 4
    assert (
        sentences("He said: “Go.” Then he went.") == 2
        and sentences("...") == 0
        and sentences("他说：“好。”走了。") == 2
    )
    assert within(3, "3") and within(3, ">=3") and within(3, "<=3") and within(3, "2-3")
    assert not (within(3, "4") or within(3, ">=4") or within(3, "<=2") or within(3, "4-5"))
    with pytest.raises(ValueError, match="want 3, >=3"):
        within(3, "three")


def test_our_own_rows_are_whole() -> None:
    rows = probe("constraints")
    assert {language: len(found) for language, found in rows.items()} == {"en": 40, "zh": 40}
    for language, found in rows.items():
        assert len({row["ask"] for row in found}) == 40
        assert sum("implied" in row for row in found) == 12
        for row in found:
            assert [name for name, _ in kept(row["checks"], "x")] == [name for check in row["checks"] for name in check]
            assert len(row["checks"]) >= 2 or "implied" in row, row["ask"]
            assert (language == "zh") == any(
                "\u4e00" <= char <= "\u9fff" for char in row["ask"] if char.isalpha()
            ) or "=" in row["ask"]


@pytest.mark.parametrize(
    ("language", "number", "answer"),
    [
        ("en", 1, "The sea is blue. It is deep."),
        ("en", 5, '{"name": "Ann", "age": 30}'),
        ("en", 14, "白色"),
        ("en", 26, "Rain is water that falls. That is all."),
        ("en", 31, '{"name": "Bob", "age": 41}'),
        ("en", 37, "Name: Ken\nCity: Rome"),
        ("zh", 1, "大海是蓝色的。海很大。"),
        ("zh", 7, "春天；夏天；秋天；冬天"),
        ("zh", 25, "雨是水。它从天上落下。就是这样。"),
        ("zh", 37, "姓名：小强\n城市：北京"),
    ],
)
def test_good_answers_to_our_own_rows_pass(language: str, number: int, answer: str) -> None:
    row = probe("constraints")[language][number - 1]
    assert all(ok for _, ok in kept(row["checks"], answer)), row["ask"]
    assert not all(ok for _, ok in kept(row["checks"], "I don't know what you want, x y."))
