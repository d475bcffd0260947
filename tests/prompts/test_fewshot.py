"""Which examples are shown with a row, and in which order."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.prompts.fewshot import BY, NEAR, Picker, pick_shots, with_shots

TEXTS = {
    "the parcel has not arrived yet": "late",
    "my parcel is late by a week": "late",
    "where is the parcel now": "where",
    "the lamp is broken in two": "broken",
    "I want money back for the lamp": "refund",
    "房子是红色的": "颜色",
    "请问怎么修改收货地址": "地址",
    "我的包裹还没有到": "late",
}
POOL = [Record.of(text, answer) for text, answer in TEXTS.items()]


def vectors(records: list[Record]) -> np.ndarray:
    """Counts of letters: near where texts share them; and the length, which tells Chinese texts apart."""
    texts = [record.instruction for record in records]
    return np.array([[len(text), *(text.count(letter) for letter in "abcdefghilmnoprstw")] for text in texts], float)


def picker(by: str, shots: int = 3, **more: object) -> Picker:
    return Picker(POOL, shots, by=by, vectors=vectors, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", BY)
def test_never_the_row_itself_nor_its_duplicate(by: str) -> None:
    for record in POOL:
        doubled = Record.of(f" {record.instruction.upper()}. ", "another answer")
        for asked in (record, doubled):
            for shots in (1, 3, 20):
                chosen = picker(by, shots).pick(asked)
                assert len(chosen) == min(shots, len(POOL) - 1) == len({one.key for one in chosen})
                assert record.instruction not in [one.instruction for one in chosen]
    assert Picker(POOL[:1], 3).pick(POOL[0]) == []


@pytest.mark.parametrize("by", BY)
def test_the_same_row_gets_the_same_examples_and_the_seed_changes_what_is_drawn(by: str) -> None:
    row = Record.of("my lamp is broken")
    assert picker(by).pick(row) == picker(by).pick(row)
    drawn = {tuple(one.key for one in picker(by, 2, seed=seed).pick(row)) for seed in range(8)}
    assert (len(drawn) > 1) is (by not in NEAR)


def test_nearest_by_shared_words_stands_last() -> None:
    chosen = picker("bm25", 2).pick(Record.of("is the lamp broken?"))
    assert [one.instruction for one in chosen][-1] == "the lamp is broken in two"
    first = picker("bm25", 2, order="nearest_first").pick(Record.of("is the lamp broken?"))
    assert first == chosen[::-1]
    # pairs of characters, not only characters: the same ones in another order say something else
    pool = [Record.of("改修址地", "no"), Record.of("请问怎么修改地址", "yes"), Record.of("没有到", "no")]
    assert Picker(pool, 1, by="bm25").pick(Record.of("修改地址"))[0].answer == "yes"
    assert picker("bm25", 1).pick(Record.of("地址可以修改吗"))[0].answer == "地址"
    assert picker("bm25", 1).pick(Record.of("包裹到了没有"))[0].answer == "late"


def test_rows_without_a_shared_word_get_drawn_examples() -> None:
    row = Record.of("zzz qqq")
    assert len({picker("bm25", 1, seed=seed).pick(row)[0].key for seed in range(9)}) > 3


def test_balanced_shows_each_label_in_turn() -> None:
    many = [Record.of(f"text {number}", "often" if number % 10 else "rare") for number in range(40)]
    for seed in range(5):
        found = Picker(many, 6, by="balanced", seed=seed).pick(Record.of("x"))
        assert Counter(one.answer for one in found) == {"often": 3, "rare": 3}
        found = Picker(many, 12, by="balanced", seed=seed).pick(Record.of("x"))
        assert Counter(one.answer for one in found) == {"often": 8, "rare": 4}
    few = {Picker(many, 1, by="balanced", seed=seed).pick(Record.of("x"))[0].answer for seed in range(9)}
    assert few == {"often", "rare"}


def test_diverse_passes_over_what_is_like_an_example_already_chosen() -> None:
    places = {
        "x": [1, 1, 0],
        "near": [1.0, 0.9, 0],
        "twin": [1.0, 0.88, 0],
        "other": [0.2, 1, 0.5],
        "far": [-3, -2, -1],
    }
    pool = [Record.of(name, name) for name in list(places)[1:]]
    see = lambda records: np.array([places[record.instruction] for record in records], float)  # noqa: E731
    row = Record.of("x")
    nearest = Picker(pool, 2, by="embedding", vectors=see, order="nearest_first").pick(row)
    assert {one.answer for one in nearest} == {"near", "twin"}
    diverse = Picker(pool, 2, by="diverse", vectors=see).pick(row)
    assert nearest[0] in diverse and {one.answer for one in diverse} - {"near", "twin"}


def test_orders() -> None:
    row = Record.of("is the lamp broken?")
    short = picker("bm25", 4, order="shortest_first").pick(row)
    sizes = [len(one.instruction) for one in short]
    assert sizes == sorted(sizes)
    long = picker("bm25", 4, order="longest_first").pick(row)
    assert [len(one.instruction) for one in long] == sizes[::-1]
    mixed = {tuple(one.key for one in picker("bm25", 4, order="random", seed=seed).pick(row)) for seed in range(6)}
    assert len(mixed) > 1 and len({frozenset(keys) for keys in mixed}) == 1
    assert with_shots(row, short).turns[0].text == short[0].instruction


def test_examples_are_of_the_rows_own_task_where_there_are_any() -> None:
    pool = [Record.of(f"text {number}", "a", task="one" if number < 3 else "two") for number in range(9)]
    for by in ("random", "balanced", "bm25"):
        assert {one.task for one in Picker(pool, 3, by=by).pick(Record.of("text 7", task="one"))} == {"one"}
    assert len(pick_shots(Record.of("text 7", task="three"), pool, 9, 0)) == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "bm52"}, "by: unknown 'bm52', did you mean 'bm25'?"),
        ({"order": "nearest-last"}, "order: unknown 'nearest-last', did you mean 'nearest_last'?"),
        ({"by": "random", "order": "nearest_last"}, "order: nearest_last needs to know what is near (got by=random, want bm25, embedding, diverse)"),
        ({"by": "diverse"}, "by: diverse needs a model's vectors"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_told(given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Picker(POOL, 1, **given)  # type: ignore[arg-type]
