"""Splits: nothing lost, groups whole, the same by seed whatever the order of the rows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec.data.facts import wording_key
from instructrec.data.records import Record
from instructrec.data.splits import HeldOut, plan_held_out, split
from instructrec.errors import InputError


def rows(number: int, *, tasks: int = 0, wordings: int = 0, start: int = 0) -> list[Record]:
    """Rows `start`.. with tasks by turns, and within a task wordings by turns (0: each row its own)."""
    made = []
    for index in range(start, start + number):
        task = f"task{index % tasks}" if tasks else None
        turn = index // max(tasks, 1)
        text = f"{task} wording {turn % wordings}" if wordings else f"{task} row {index}"
        made.append(Record.of(text, f"answer {index}", input=f"input {index}", task=task))
    return made


def texts(records: list[Record], held: list[int]) -> set[str]:
    return {records[index].input for index in held}


def is_partition(records: list[Record], plan: HeldOut) -> bool:
    parts = [plan.train, *plan.sets.values()]
    return sorted(index for part in parts for index in part) == list(range(len(records))) and all(parts)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.integers(0, 12), max_size=40),
    share=st.floats(0, 0.99),
    by=st.sampled_from(["row", "wording"]),
    seed=st.integers(0, 99),
)
def test_every_row_is_in_one_part_and_no_wording_in_two(keys: list[int], share: float, by: str, seed: int) -> None:
    records = [Record.of(f" Do  THING {key} ".swapcase() if key % 2 else f"do thing {key}", "a") for key in keys]
    if share and len(set(keys)) < 2:
        with pytest.raises(InputError, match=f"^split: all rows are one {by} "):
            split(records, share=share, by=by, seed=seed)
        return
    parts = split(records, share=share, by=by, seed=seed)
    assert sorted(parts.train + parts.held_out) == list(range(len(records)))
    assert bool(parts.held_out) == bool(share) and 2 * len(parts.held_out) <= len(records)
    assert not {keys[i] for i in parts.train} & {keys[i] for i in parts.held_out}


def test_wording_key() -> None:
    assert wording_key(Record.of(" Say\tHI ", "a")) == wording_key(Record.of("say hi", "b", input="x")) == "say hi"
    assert wording_key(Record.of("say hi", "a", group="7")) == "7"


def test_groups_stay_together() -> None:
    records = [Record.of(f"row {index}", "a", group=str(index // 4)) for index in range(80)]
    parts = split(records, share=0.2, by="wording", seed=1)
    assert len(parts.held_out) == 16 and len({index // 4 for index in parts.held_out}) == 4


@pytest.mark.parametrize("by", ["row", "wording", "task"])
def test_the_seed_decides_and_the_order_does_not(by: str) -> None:
    records = rows(120, tasks=12, wordings=5)
    backwards = records[::-1]
    one = split(records, share=0.2, by=by, seed=3)
    assert one == split(records, share=0.2, by=by, seed=3)
    two = split(backwards, share=0.2, by=by, seed=3)
    assert texts(records, one.held_out) == texts(backwards, two.held_out)
    others = [texts(records, split(records, share=0.2, by=by, seed=seed).held_out) for seed in range(4, 8)]
    assert any(texts(records, one.held_out) != other for other in others)


def test_appended_rows_move_few_others() -> None:
    before, after = rows(200), rows(240)
    held = texts(before, split(before, share=0.1, by="row", seed=0).held_out)
    again = texts(after, split(after, share=0.1, by="row", seed=0).held_out)
    assert len(held) == 20 and len(again) == 24 and len(held & again) >= 16


def test_equal_rows_are_never_on_both_sides() -> None:
    records = rows(10) * 3
    parts = split(records, share=0.3, by="row", seed=0)
    assert len(parts.held_out) == 9 and len(texts(records, parts.held_out)) == 3


def test_whole_tasks() -> None:
    records = [*rows(90, tasks=18), Record.of("no task", "a")]
    parts = split(records, share=0.1, by="task", seed=0)
    assert len(parts.held_out_tasks) == 3 and len(parts.held_out) == 15
    assert {records[index].task for index in parts.held_out} == set(parts.held_out_tasks)
    assert not {records[index].task for index in parts.train} & set(parts.held_out_tasks)
    assert len(split(records, share=0.1, by="task", seed=0, tasks=7).held_out_tasks) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "rows", "share": 0.1}, "by: unknown 'rows', did you mean 'row'?"),
        ({"by": "row", "share": 1.0}, "share: out of range (got 1.0, want 0 to below 1)"),
        (
            {"by": "task", "share": 0.1},
            "held_out: not enough tasks to hold one out (got 0 tasks, want at least 2 in a column 'task')",
        ),
    ],
)
def test_what_cannot_be_split(options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        split(rows(10), seed=0, **options)
    assert str(error.value) == message


def plan(records: list[Record], held_out: str = "auto", share: float = 0.1, tasks: int | None = None) -> HeldOut:
    return plan_held_out(records, held_out=held_out, share=share, tasks=tasks, seed=0)


def test_tasks_and_wordings_of_the_rest() -> None:
    records = rows(360, tasks=12, wordings=6)
    made = plan(records)
    assert is_partition(records, made) and list(made.sets) == ["unseen_tasks", "seen"]
    assert made.held_out_tasks == sorted({str(records[i].task) for i in made.sets["unseen_tasks"]})
    trained = {wording_key(records[i]) for i in made.train}
    assert not trained & {wording_key(records[i]) for i in made.sets["seen"]}
    assert {records[i].task for i in made.sets["seen"]} <= {records[i].task for i in made.train}
    assert made.explanation == (
        f"Held out: 2 of 12 tasks ({', '.join(made.held_out_tasks)}; 60 rows) as unseen tasks and 6 wordings (30 rows) "
        "of the other tasks; 270 rows to train on."
    )


def test_with_one_wording_a_task_rows_are_held_out_and_no_further_task() -> None:
    records = rows(360, tasks=12, wordings=1)
    made = plan(records)
    assert is_partition(records, made) and len(made.sets["seen"]) == 30
    assert {records[i].task for i in made.sets["seen"]} <= {records[i].task for i in made.train}
    assert made.explanation.endswith("as unseen tasks and 30 rows of the other tasks; 270 rows to train on.")


@pytest.mark.parametrize("seed", range(8))
def test_no_task_loses_its_last_wording(seed: int) -> None:
    records = rows(180, tasks=20, wordings=3)
    made = plan_held_out(records, held_out="auto", share=0.4, seed=seed)
    trained = {records[index].task for index in made.train}
    assert len(trained) == 20 - len(made.held_out_tasks) and "wordings (" in made.explanation


def test_tasks_of_a_single_row_are_not_called_seen() -> None:
    made = plan(rows(40, tasks=40))
    assert list(made.sets) == ["unseen_tasks"] and len(made.train) == 36


@pytest.mark.parametrize(
    ("records", "held_out", "sizes", "explanation"),
    [
        (rows(100, wordings=20), "auto", {"seen": 10}, "Held out: 2 wordings (10 rows); 90 rows to train on."),
        (rows(100), "auto", {"seen": 10}, "Held out: 10 rows; 90 rows to train on."),
        (rows(100, wordings=4), "auto", {"seen": 10}, "Held out: 10 rows; 90 rows to train on."),
        (rows(100, wordings=4), "wording", {"seen": 25}, "Held out: 1 wording (25 rows); 75 rows to train on."),
        (rows(100, wordings=20), "row", {"seen": 10}, "Held out: 10 rows; 90 rows to train on."),
        (rows(90, tasks=3), "auto", {"seen": 9}, "Held out: 9 rows; 81 rows to train on."),
        (rows(100, tasks=10), "none", {}, "Nothing is held out, as asked."),
        (rows(7), "auto", {}, "Nothing is held out: too few rows (got 7, want at least 8)."),
        (rows(1) * 20, "auto", {}, "Nothing is held out: all rows are equal."),
        (rows(8), "auto", {"seen": 1}, "Held out: 1 row; 7 rows to train on."),
    ],
)
def test_plans(records: list[Record], held_out: str, sizes: dict, explanation: str) -> None:
    made = plan(records, held_out)
    assert {name: len(part) for name, part in made.sets.items()} == sizes
    assert is_partition(records, made) and made.explanation == explanation


def test_tasks_as_asked() -> None:
    three = rows(90, tasks=3)
    assert plan(three, "task").explanation.startswith("Held out: 1 of 3 tasks (task")
    assert plan(rows(90, tasks=9), tasks=0).held_out_tasks == []
    assert len(plan(rows(90, tasks=9), tasks=5).held_out_tasks) == 5
    assert list(plan(rows(90, tasks=9), share=0).sets) == ["unseen_tasks"]
    assert plan(rows(90), share=0).explanation == "Nothing is held out: the share is 0."


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (rows(9), {"held_out": "taks"}, "held_out: unknown 'taks', did you mean 'task'?"),
        (
            rows(5, tasks=1),
            {"held_out": "task"},
            "held_out: not enough tasks to hold one out (got 1 task, want at least 2 in a column 'task')",
        ),
        (
            rows(90, tasks=9),
            {"tasks": 9},
            "held_out_tasks: out of range (got 9, want 1 to 8: the rows have 9 tasks)",
        ),
        (
            rows(90, wordings=1),
            {"held_out": "wording"},
            "held_out: not enough wordings (got 1, want at least 2 instructions or groups)",
        ),
        (rows(90), {"share": -0.1}, "share: out of range (got -0.1, want 0 to below 1)"),
    ],
)
def test_plans_that_cannot_be_made(records: list[Record], options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        plan(records, **options)
    assert str(error.value) == message
