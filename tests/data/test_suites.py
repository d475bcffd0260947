"""Sorting test rows by what was trained on, what intervals are over, and rows kept for testing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from instructrec.data.facts import wording_key
from instructrec.data.records import Record
from instructrec.data.splits import plan_test
from instructrec.data.suites import KINDS, Traits, clusters_of, sort_rows
from instructrec.errors import InputError


def row(instruction: str, input: str = "x", answer: str = "y", task: str | None = "t", **metadata: Any) -> Record:
    return replace(Record.of(instruction, answer, input=input, task=task), metadata=metadata)


TRAIN = [
    row(f"Say {wording}", f"word {number}", task=task)
    for wording in "ab"
    for number in range(4)
    for task in ("one", "two")
]
TRAINED = frozenset(record.prompt_key for record in TRAIN)


def kind(record: Record, train: list[Record] = TRAIN) -> str:
    (found,) = sort_rows([record], frozenset(one.prompt_key for one in train), Traits.of(train))
    return found


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (TRAIN[3], "training"),
        (row("Say a", "new", task="one"), "seen"),
        (row("SAY  a", "new", task="one"), "seen"),  # case and spacing are no wording
        (row("Tell c", "new", task="one"), "unseen_wordings"),
        (row("Say a", "new", task="three"), "unseen_tasks"),
        (row("Say a", "new", task=None), "seen"),
        (row("Say a", "今天天气很好", task="three"), "other_language"),
        (row("Say a", "new", "很好", task="one"), "other_language"),
        (row("Say a", "new", "1984", task="one"), "seen"),  # digits are in no script
    ],
)
def test_a_row_is_of_the_first_kind_that_holds(record: Record, wanted: str) -> None:
    assert kind(record) == wanted


def test_domains_come_from_the_first_column_that_training_rows_have() -> None:
    train = [row("Say a", str(number), domain="bank", source=f"s{number}") for number in range(3)]
    assert Traits.of(train).domain_column == "domain"
    assert kind(row("Say a", "new", domain="bank", source="other"), train) == "seen"
    assert kind(row("Say a", "new", domain="shop"), train) == "other_domains"
    assert kind(row("Say a", "new"), train) == "seen"  # says nothing of its domain
    only = [row("Say a", str(number), source="here") for number in range(3)]
    assert kind(row("Say a", "new", source="there"), only) == "other_domains"


def test_a_column_language_is_believed_before_scripts() -> None:
    train = [row("Say a", str(number), language="en") for number in range(3)]
    assert kind(row("Say a", "mot", language="fr"), train) == "other_language"
    assert kind(row("Say a", "mot"), train) == "seen"


def test_a_slip_is_no_language_that_was_trained() -> None:
    train = [row("Say a", f"word {number}") for number in range(300)]
    assert kind(row("Say a", "很好"), [*train, row("Say a", "你好")]) == "other_language"
    assert kind(row("Say a", "很好"), [*train, *(row("Say a", f"你好{number}") for number in range(4))]) == "seen"


def test_without_traits_only_trained_rows_are_told_apart() -> None:
    found = sort_rows([row("Tell c", "new"), TRAIN[0]], TRAINED, None)
    assert {name: len(rows) for name, rows in found.items()} == {"all": 1, "training": 1}
    assert list(
        sort_rows([row("Tell c", "n", task="one"), row("Say a", "n", task="one")], TRAINED, Traits.of(TRAIN))
    ) == ["seen", "unseen_wordings"]
    assert KINDS.index("seen") < KINDS.index("unseen_wordings") < KINDS.index("training")


def test_traits_survive_a_file() -> None:
    traits = Traits.of(
        [*TRAIN, row("Say a", "z", "often", task="one", source="s"), row("Say b", "z", "often", task="one")]
    )
    again = Traits.from_json(json.loads(json.dumps(traits.to_json())), sorted(traits.wordings))
    assert again == traits
    assert traits.majority == {"": "y", "one": "y", "two": "y"} and traits.rows == 18 and traits.tasks == {"one", "two"}


def test_what_intervals_are_over() -> None:
    tasks = [row("Say a", str(number), task=str(number % 5)) for number in range(10)]
    assert clusters_of(tasks) == ("tasks", [str(number % 5) for number in range(10)])
    few = [row(f"Say {number % 5}", str(number), task=str(number % 4)) for number in range(10)]
    assert clusters_of(few) == ("wordings", [wording_key(record) for record in few])
    assert clusters_of([replace(tasks[0], task=None), *tasks[1:]])[0] == "rows"  # one wording only
    assert clusters_of([row(f"Say {number}", task=None) for number in range(10)]) == ("rows", None)  # all different


def test_rows_kept_for_testing_are_tasks_wordings_and_rows() -> None:
    rows = [
        row(f"Say {task} {wording}", f"w{number}", task=f"t{task}")
        for task in range(6)
        for wording in range(4)
        for number in range(10)
    ]
    held = plan_test(rows, share=0.2, seed=1)
    left = [rows[place] for place in range(len(rows)) if place not in set(held)]
    found = sort_rows([rows[place] for place in held], frozenset(one.prompt_key for one in left), Traits.of(left))
    assert {name: len(found[name]) for name in found} == {"seen": 18, "unseen_wordings": 20, "unseen_tasks": 40}
    assert plan_test(rows, share=0.2, seed=1) == held != plan_test(rows, share=0.2, seed=2)


def test_one_prompt_is_never_on_both_sides() -> None:
    rows = [row("Say a", str(number // 2), str(number), task=None) for number in range(40)]
    held = plan_test(rows, share=0.25, seed=0)
    keys = {rows[place].prompt_key for place in held}
    assert len(held) == 10 and not keys & {rows[place].prompt_key for place in range(40) if place not in held}


def test_a_test_part_that_comes_to_nothing_is_an_error() -> None:
    assert plan_test([row("Say a")], share=0.0, seed=0) == []
    with pytest.raises(InputError) as caught:
        plan_test([row("Say a")], share=0.5, seed=0)
    assert str(caught.value) == "test_share: no row can be kept for testing (got 1 row, want at least two)"
