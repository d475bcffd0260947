"""What is taken for the answer of a text, and by which rule."""

from __future__ import annotations

import pytest

from instructrec.measures.extraction import RULES, Extractor, extracted

LABELS = ("positive", "negative", "card", "lost_card", "正面", "负面")


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        ("positive", "positive", "whole"),
        ("Positive.", "Positive.", "whole"),
        ("\nnegative\nBecause it is bad.", "negative", "first_line"),
        ("It is positive, I think.", "positive", "label"),
        ("**positive**", "positive", "label"),
        ("The answer follows.\nIt is negative.", "negative", "label"),
        ("lost card", "lost_card", "label"),
        ("They have a lost_card there", "lost_card", "label"),
        ("这是正面的评价", "正面", "label"),
        ("positive or negative", "positive or negative", "none"),
        ("positively", "positively", "none"),
        ("nonpositive", "nonpositive", "none"),
        ("cards", "cards", "none"),
        ("", "", "none"),
    ],
)
def test_labels(text: str, answer: str, rule: str) -> None:
    assert Extractor(LABELS, one_line=True)(text) == (answer, rule) and rule in RULES


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        ("B", "B", "whole"),
        ("The answer is B.", "B", "label"),
        ("(A) because", "A", "label"),
        ("A man walks in", "A man walks in", "none"),
        ("A) or B)", "A) or B)", "none"),
    ],
)
def test_letters_need_a_sign_behind_them(text: str, answer: str, rule: str) -> None:
    assert Extractor(("A", "B"), one_line=True)(text) == (answer, rule)


def test_texts_end_with_their_first_line_where_right_answers_do() -> None:
    assert Extractor(None, one_line=True)("\n maison \nInput: tree") == ("maison", "first_line")
    assert Extractor(None, one_line=True)("maison") == ("maison", "whole")
    assert Extractor(None, one_line=False)("one\ntwo") == ("one\ntwo", "whole")


def test_off_is_off() -> None:
    assert Extractor(LABELS, one_line=True, on=False)("It is positive.") == ("It is positive.", "whole")


def test_labels_that_read_alike_stand_for_neither() -> None:
    found = Extractor(("a_b", "a b", "other"), one_line=True)
    assert found("it is a b there") == ("it is a b there", "none") and found("the other one") == ("other", "label")


def test_texts_are_looked_through_as_their_right_answers_are() -> None:
    texts = ["\nred\nand more", "blue"]
    assert extracted(texts, [["red"], ["blue", "sky"]], None) == ["red", "blue"]
    assert extracted(texts, [["red"], ["two\nlines"]], None) == texts
    assert extracted(["It is positive."], [["positive"]], LABELS) == ["positive"]
