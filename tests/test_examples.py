"""The example data is what its README says: counts, format, no leak from training into the tests.

The files are read here by splitting at the tab, so that these tests hold whatever the readers do.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import yaml

from instructrec.config import TuneSettings

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = {"support": (175, 75), "test_wordings": (50, 25), "test_matters": (16, 8)}  # English, Chinese rows
MATTERS = {"support": (25, 7, 3), "test_wordings": (25, 2, 1), "test_matters": (8, 2, 1)}  # matters, wordings of each
NEAR = 0.9  # difflib ratio from which two texts count as the same
LEAK = 0.75  # the same between a test and training, where changing one word must not be enough


def lines(name: str) -> list[str]:
    """The lines of a file, which ends with exactly one line break."""
    text = (EXAMPLES / name).read_bytes().decode("utf-8")
    assert text.endswith("\n") and not text.endswith("\n\n")
    return text[:-1].split("\n")


def rows(name: str) -> list[tuple[str, str]]:
    """(instruction, answer) of every row after the header line."""
    return [(instruction, answer) for instruction, answer in (line.split("\t") for line in lines(f"{name}.tsv")[1:])]


def is_chinese(text: str) -> bool:
    return re.search("[\u4e00-\u9fff]", text) is not None


def normalised(text: str) -> str:
    """Lower case, letters and digits only."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).lower() if letter.isalnum())


def closest(text: str, others: list[str], near: float = NEAR) -> tuple[float, str]:
    """The largest difflib ratio of `text` with one of `others`, and which one it is; 0 where none reaches `near`."""
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(text)
    best = (0.0, "")
    for other in others:
        matcher.set_seq1(other)
        # The two quick ratios are upper bounds: most pairs need no full comparison.
        if matcher.real_quick_ratio() >= near and matcher.quick_ratio() >= near and matcher.ratio() >= near:
            best = max(best, (matcher.ratio(), other))
    return best


@pytest.mark.parametrize("name", FILES)
def test_form(name: str) -> None:
    found = lines(f"{name}.tsv")
    assert found[0] == "instruction\tanswer"
    assert [line for line in found if line.count("\t") != 1] == []
    assert [line for line in found if any(field != field.strip() or not field for field in line.split("\t"))] == []
    # Nothing that a reader would have to unescape, and no characters that look like others or are not seen.
    assert [line for line in found if re.search(r"[\\\ufeff\u00a0\u200b\u3000\r\"‘’—–…]", line)] == []


@pytest.mark.parametrize("name", FILES)
def test_counts(name: str) -> None:
    english = Counter(answer for _, answer in rows(name) if not is_chinese(answer))
    chinese = Counter(answer for _, answer in rows(name) if is_chinese(answer))
    assert (english.total(), chinese.total()) == FILES[name]
    matters, wordings, chinese_wordings = MATTERS[name]
    assert list(english.values()) == [wordings] * matters
    assert list(chinese.values()) == [chinese_wordings] * matters


@pytest.mark.parametrize("name", FILES)
def test_question_and_answer_are_in_one_language(name: str) -> None:
    assert [row for row in rows(name) if is_chinese(row[0]) != is_chinese(row[1])] == []


def test_ask() -> None:
    asked = lines("ask.txt")
    assert [is_chinese(line) for line in asked] == [False, False, True]
    known = [instruction for name in FILES for instruction, _ in rows(name)]
    assert [(line, other) for line in asked if (other := closest(line, known, LEAK)[1])] == []


def test_no_prompt_occurs_twice() -> None:
    prompts = [normalised(instruction) for name in FILES for instruction, _ in rows(name)]
    prompts += [normalised(line) for line in lines("ask.txt")]
    assert len(prompts) == 352
    assert [prompt for prompt, count in Counter(prompts).items() if count > 1] == []


def test_answers_seen_and_unseen() -> None:
    trained = {answer for _, answer in rows("support")}
    assert len(trained) == 50
    assert {answer for _, answer in rows("test_wordings")} == trained
    unseen = {answer for _, answer in rows("test_matters")}
    assert len(unseen) == 16
    assert unseen & trained == set()


def test_answers_of_different_matters_differ() -> None:
    trained = sorted({answer for _, answer in rows("support")})
    found = [(answer, closest(answer, trained[:index])[1]) for index, answer in enumerate(trained)]
    assert [(answer, other) for answer, other in found if other] == []


@pytest.mark.parametrize(("name", "compared"), [("test_wordings", 75), ("test_matters", 24)])
def test_no_near_duplicate_of_a_training_wording(name: str, compared: int) -> None:
    trained = [instruction for instruction, _ in rows("support")]
    found = [(instruction, closest(instruction, trained, LEAK)[1]) for instruction, _ in rows(name)]
    assert len(found) == compared
    assert [(instruction, other) for instruction, other in found if other] == []


def test_wordings_within_training_differ() -> None:
    trained = [instruction for instruction, _ in rows("support")]
    found = [(one, closest(one, trained[:index])[1]) for index, one in enumerate(trained)]
    assert [(one, other) for one, other in found if other] == []


@pytest.mark.parametrize("name", FILES)
def test_house_style(name: str) -> None:
    for answer in {answer for _, answer in rows(name)}:
        if is_chinese(answer):
            assert answer.count("下一步：请") == 1 and answer.endswith("。"), answer
            assert 12 <= sum(letter.isalnum() for letter in answer) <= 35, answer
            assert answer.count("“") == answer.count("”"), answer
        else:
            assert answer.count(" Next step: ") == 1 and answer.endswith("."), answer
            assert 8 <= len(answer.split()) <= 25, answer


def test_chinese_punctuation_is_full_width() -> None:
    texts = [text for name in FILES for row in rows(name) for text in row] + lines("ask.txt")
    assert [text for text in texts if is_chinese(text) and re.search("[,.:;?!()]", text)] == []
    assert [text for text in texts if not is_chinese(text) and not text.isascii()] == []


def test_readme_lists_every_answer_and_count() -> None:
    readme = lines("README.md")
    answers = {answer for name in FILES for _, answer in rows(name)}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme if line.startswith("|")]
    listed = [cells_[1] for cells_ in cells if cells_[1] in answers]
    assert len(listed) == 66
    assert set(listed) == answers
    counts = Counter((cells_[0], cells_[1]) for cells_ in cells)
    for name, (english, chinese) in FILES.items():
        assert counts[f"`{name}.tsv`", str(english + chinese)] == 2  # once in each language
    assert counts["`ask.txt`", "3"] == 2


def test_settings_file() -> None:
    given = yaml.safe_load((EXAMPLES / "tune.yaml").read_text(encoding="utf-8"))
    assert EXAMPLES.parent / given.pop("data") == EXAMPLES / "support.tsv"
    settings = TuneSettings.model_validate(given)
    assert settings.out == "runs/support"
    assert settings.model == TuneSettings.model_fields["model"].default
