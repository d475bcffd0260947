"""Near duplicates: found, not invented, and the estimate is what the exact sets say."""

from __future__ import annotations

import numpy as np
import pytest

from instructrec.measures.overlap import NEAR, Index, Texts, shingles, signatures

LONG = "the parcel that I ordered last week has still not arrived and nobody answers my calls about it at all today"
TRAIN = [
    Texts("Sort this message.", LONG, "sort"),
    Texts("Sort this message.", "where is my money", "sort"),
    Texts("把句子翻译成英文。", "今天的天气非常好，我们去公园走走吧", "translate"),
    Texts(f"Is it good? {LONG}", "", None),
]


def near(*rows: Texts) -> list[int]:
    return Index.of(TRAIN).near(rows)


def test_near_copies_are_found_and_others_are_not() -> None:
    assert near(
        Texts("Sort this message.", LONG.upper() + "!", "sort"),
        Texts("Sort this message.", LONG.replace("today", "now"), "sort"),
        Texts("Sort this message.", "where is my card", "sort"),
        Texts("把句子翻译成英文。", "今天的天气非常好，我们去公园走走吧！", "translate"),
        Texts("Sort this message.", "an entirely different message about opening an account", "sort"),
    ) == [0, 0, -1, 2, -1]


def test_the_same_input_asked_something_else_is_another_row() -> None:
    assert near(Texts("Write a poem about what follows", LONG, "poem")) == [-1]
    assert near(Texts("Which class has this?", LONG, "sort")) == [0]  # another wording of the same task
    assert near(Texts("Sort this message", LONG, None)) == [0]  # nearly the same wording


def test_inputs_are_not_looked_for_inside_instructions() -> None:
    assert near(Texts("Sort", f"Is it good? {LONG}", None), Texts(f"Is it good? {LONG}", "", None)) == [-1, 3]
    assert near(Texts("where is my money", "", None)) == [-1]


def test_the_estimate_is_near_the_exact_similarity() -> None:
    words = [f"w{number}" for number in range(200)]
    draw = np.random.default_rng(0)
    for cut in (20, 60, 120):
        errors = []
        for _ in range(10):
            order = draw.permutation(words).tolist()
            one, other = " ".join(order), " ".join(order[cut:])
            first, second = set(shingles(one)), set(shingles(other))
            exact = len(first & second) / len(first | second)
            a, b = signatures([one, other])
            errors.append(float((a == b).mean()) - exact)
        assert abs(np.mean(errors)) < 0.06 and max(map(abs, errors)) < 0.2


def test_nothing_to_compare() -> None:
    assert Index.of([]).near([TRAIN[0]]) == [-1] and Index.of(TRAIN).near([]) == []
    assert near(Texts("", "", None)) == [-1]


@pytest.mark.parametrize("text", ["\ud800 half", "a"])
def test_odd_text_has_a_signature(text: str) -> None:
    assert signatures([text]).shape == (1, 64) and 0 < NEAR < 1
