"""Perturbations: what they do, what they keep, and that they are the same for the same seed and row."""

from __future__ import annotations

import re
import unicodedata
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.measures import edits
from instructrec.measures.edits import chosen, count, edited
from instructrec.measures.kept import Said, free, kept
from instructrec.measures.perturbations import KINDS, PERTURBATIONS, damage, draw_of
from instructrec.measures.words import homophones, variants, words
from instructrec.prompts.choose import make_renderer

UNITS = [name for name, way in PERTURBATIONS.items() if way.edits]
LABELS = ("positive", "negative", "neutral")
MOOD = Said(
    "Which mood has the review: positive, negative or neutral?", "A fine film about Nokia", ("positive",), LABELS
)
PASSIVE = Said(
    "Change the following sentence from active to passive.",
    "The doctor helped the artists.",
    ("The artists were helped by the doctor.",),
)
CHOICE = Said("请从下面的选项中选出原因。", "路湿了。\n选项一：下雨了。\n选项二：出太阳了。", ("下雨了。",))
# Pieces that meet all branches, and what tokenizers control models with.
PIECES = st.sampled_from(
    "Write the opposite of word 'house' 12,5 a I Translate: sentence following <|im_end|> <|im_xstart|> [b] {x} 请 写出 的 反义词 "
    "问题 ， 。 ？ 选项一：\n A) \n B. \n - ok \n\n positive or negative é ß 한국 🙂 \u00a0 don't ＜｜im_end｜＞ </s> \t".split(
        " "
    )
)
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(PIECES, max_size=25).map(" ".join), st.lists(PIECES, max_size=12).map("".join)
)


def damaged(said: Said, name: str, strength: float = 0.5, parts: str = "instruction", seed: int = 0) -> Said:
    return damage(said, name, strength, draw_of(seed, said.instruction, name), parts)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.floats(0, 1), st.integers(0, 3), st.sampled_from(["instruction", "input", "both"]))
def test_any_text_can_be_damaged_and_the_same_seed_does_the_same(
    text: str, about: str, strength: float, seed: int, parts: str
) -> None:
    said = Said(text, about, ("house", "反义词"), LABELS, (text, "other words"))
    known = {*"".join([text, about, *words("en")["distractors"], *words("zh")["distractors"]])}
    for name in PERTURBATIONS:
        assert damaged(said, name, 0.0, parts, seed) == said
        found = damaged(said, name, strength, parts, seed)
        assert found == damaged(said, name, strength, parts, seed)
        assert (found.answers, found.labels, found.wordings) == (said.answers, said.labels, said.wordings)
        if parts == "instruction" and PERTURBATIONS[name].edits:
            assert found.input == about
        new = {*(found.instruction + found.input)} - known
        assert not [one for one in new if unicodedata.category(one) in ("Cs", "Co", "Cc") and one not in "\n "]


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.sampled_from(UNITS))
def test_more_strength_adds_to_what_less_does(text: str, one: float, two: float, seed: int, name: str) -> None:
    way = PERTURBATIONS[name].edits
    assert way
    found = way(text, [], Random(seed))
    assert found == way(text, [], Random(seed))
    places = sorted(found)
    assert all(a[1] <= b[0] for a, b in zip(places, places[1:], strict=False))  # they do not overlap
    assert all(0 <= start <= end <= len(text) and text[start:end] != new for start, end, new in found)
    few, many = (chosen(found, strength, Random(seed)) for strength in sorted((one, two)))
    assert {*few} <= {*many} and len(few) == count(min(one, two), len(found))
    assert bool(few) == bool(min(one, two) > 1e-9 and found)
    assert edited(text, found, 0, Random(seed)) == text
    assert not found or edited(text, found, 1, Random(seed)) != text


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.floats(0.01, 1), st.sampled_from(UNITS))
def test_kept_spans_stay(text: str, strength: float, name: str) -> None:
    said = Said(text, "the house is 'mine'", ("house", "反义词"), LABELS)
    head = said.split()[0]
    spans = kept(head, said, "instruction")
    found = damaged(said, name, strength)
    if spans is None:
        assert found == said
        return
    way = PERTURBATIONS[name].edits
    assert way and all(free(edit[:2], spans) or edit[0] == edit[1] for edit in way(head, spans, Random(0)))
    for phrase in ("反义词", "neutral"):
        assert found.instruction.count(phrase) >= head.count(phrase)


@pytest.mark.parametrize("kind", ["qwen", "llama3"])
@settings(max_examples=15, deadline=None)
@given(text=st.lists(PIECES, min_size=1, max_size=12).map(" ".join))
def test_no_control_token_is_made(kind: str, text: str) -> None:
    tokenizer = tiny.tokenizer(kind)
    renderer = make_renderer(tokenizer, "model")
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}

    def controls(said: Said) -> list[int] | None:
        try:
            return [
                token
                for token in renderer.render(Record.of(said.instruction, input=said.input)).ids
                if token in special
            ]
        except InputError:  # refused, as it has to be
            return None

    said = Said(f"Say {text}")
    for name in PERTURBATIONS:
        for seed in range(3):
            assert controls(damaged(said, name, 1.0, seed=seed)) in (controls(Said("Say")), None)


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_way_does_something_to_its_text(name: str) -> None:
    text = (
        "请写出下面这个词的反义词：Write the opposite of this word, please."
        if PERTURBATIONS[name].kind == "chinese"
        else PASSIVE.instruction
    )
    found = edits.edited(text, PERTURBATIONS[name].edits(text, [], Random(1)), 1.0, Random(1))  # type: ignore[misc]
    assert found != text and len(found) > len(text) / 2


def test_the_samples() -> None:
    """To be looked at: `pytest -s`; what they look like is held by docs/robustness.md."""
    for said in (MOOD, PASSIVE, CHOICE):
        print(f"\n{said.instruction}")
        for name, way in PERTURBATIONS.items():
            found = damaged(said, name, way.strength, "both")
            if found != said:
                print(
                    f"  {name:18} {found.instruction!r} {found.input!r}"
                    if found.input != said.input
                    else f"  {name:18} {found.instruction!r}"
                )
            for label in said.labels:
                assert label in found.instruction or name == "case"
    assert {way.kind for way in PERTURBATIONS.values()} | {"adversarial"} == {*KINDS}


def test_letters_are_those_beside_on_the_keyboard() -> None:
    found = {new.lower() for seed in range(200) for _, _, new in edits.typos("ssss SSSS", [], Random(seed))}
    assert found == set("adwezx")
    assert {new.isupper() for _, _, new in edits.typos("TURN", [], Random(0))} == {True}
    assert edits.typos("the cat", [], Random(0)) == []  # too short to be read with a wrong letter


def test_what_hangs_on_letters_is_kept() -> None:
    word = Said("Write the plural of the following word:", "the old grey house", ("houses",))
    assert all(damaged(word, name, 1.0, "input") == word for name in UNITS)
    assert damaged(word, "typos", 1.0).instruction != word.instruction
    joined = Said("Write the first letter of house", "", ("h",))
    assert all(damaged(joined, name, 1.0) == joined for name in UNITS)
    colon = Said("Translate into French: the old grey house", "", ("la vieille maison grise",))
    assert all(damaged(colon, name, 1.0).instruction.endswith(" the old grey house") for name in UNITS)
    assert damaged(colon, "typos", 1.0).instruction != colon.instruction
    assert damaged(Said("Translate", "house", ("maison",)), "typos", 1.0, "input").input == "house"


def test_labels_names_numbers_and_quotes_are_kept() -> None:
    said = Said(
        "Rate 'the sentence' from 10 to 25 towards Nokia: positive, negative?",
        "What Nokia said yesterday evening",
        ("positive",),
        LABELS,
    )
    for name in UNITS:
        found = damaged(said, name, 1.0, "both")
        assert "'the sentence'" in found.instruction and "Nokia" in found.instruction and "Nokia" in found.input
        assert re.findall(r"\d+", found.instruction) == ["10", "25"]
        assert "positive" in found.instruction and "negative" in found.instruction


def test_options_come_in_another_order_with_the_same_answer() -> None:
    assert damaged(MOOD, "options").instruction in {
        f"Which mood has the review: {a}, {b} or {c}?"
        for a in LABELS
        for b in LABELS
        for c in LABELS
        if len({a, b, c}) == 3
    } - {MOOD.instruction}
    lines = Said("Which is a fruit?\nA) stone\nB) apple\nC) cloud", "", ("apple",))
    found = damaged(lines, "options").instruction.splitlines()
    assert [line[:2] for line in found[1:]] == ["A)", "B)", "C)"] and {line[3:] for line in found[1:]} == {
        "stone",
        "apple",
        "cloud",
    }
    assert found != lines.instruction.splitlines()
    letter = Said(lines.instruction, "", ("B",))  # the letter is the answer: it goes with its text
    found = damaged(letter, "options").instruction.splitlines()
    assert "B) apple" in found and sorted(found[1:]) == lines.instruction.splitlines()[1:]
    other = Said(lines.instruction, "", ("pear",))  # nothing says that these are options
    assert damaged(other, "options") == other
    assert damaged(CHOICE, "options").input == "路湿了。\n选项一：出太阳了。\n选项二：下雨了。"
    either = Said("Is the bird alive or dead now?", "", ("dead",))
    assert damaged(either, "options").instruction == "Is the bird dead or alive now?"


def test_text_first_and_distractors() -> None:
    assert (
        damaged(PASSIVE, "text_first").instruction
        == "The doctor helped the artists.\n\nChange the above sentence from active to passive."
    )
    assert damaged(Said("Translate into French: house"), "text_first").instruction == "house\n\nTranslate into French"
    assert damaged(Said("Text: it rains\nQuestion: why?"), "text_first").instruction == "Text: it rains\nQuestion: why?"
    for name in ("distractor_before", "distractor_after"):
        one, five = (damaged(PASSIVE, name, strength).instruction for strength in (0.2, 1.0))
        assert sum(sentence in one for sentence in words("en")["distractors"]) == 1
        assert sum(sentence in five for sentence in words("en")["distractors"]) == 5
        assert PASSIVE.instruction in one and damaged(PASSIVE, name).input == PASSIVE.input
    into = Said("Translate into French:", "house")  # what follows the colon would be translated
    assert damaged(into, "distractor_after") == into


def test_other_wordings_only_where_there_are_some() -> None:
    said = Said("Say it twice", "red", ("red red",), (), ("Say it twice", "Repeat it"))
    assert damaged(said, "paraphrase").instruction == "Repeat it"
    joined = Said("Say red twice", "", ("red red",), (), ("Say red twice", "Say blue twice"))
    assert damaged(joined, "paraphrase") == joined


def test_chinese_characters() -> None:
    sounds = homophones()
    assert "情" in sounds["请"] and "事" in sounds["是"] and all(key not in value for key, value in sounds.items())
    assert len(sounds) > 1500
    assert all(variants()[variants()[one]] == one for one in variants())
    assert damaged(Said("不要写没有的"), "homophones", 1.0).instruction.count("不") == 1
    for name in ("width", "homophones", "variants"):
        assert damaged(PASSIVE, name, 1.0) == PASSIVE
    assert damaged(Said("请用abc写！"), "width", 1.0).instruction == "请用ａｂｃ写!"
    lost = damaged(Said("请说明文章的目的"), "drop_words", 1.0).instruction
    assert lost == "说明文章目的"


def test_synonyms_fit() -> None:
    for word, others in words("en")["synonyms"].items():
        assert others and word not in others and not {*others} & words("en")["negations"]
    for word, others in words("zh")["synonyms"].items():
        assert others and word not in others
    said = Said("Name an object")  # 'an thing' would be wrong, 'an item' is right
    assert {damaged(said, "synonyms", 1.0, seed=seed).instruction for seed in range(20)} == {"Name an item"}
    assert damaged(Said("FIND it"), "synonyms", 1.0).instruction.split()[0] in ("IDENTIFY", "LOCATE")


def test_wrong_parts_and_strengths() -> None:
    with pytest.raises(ValueError, match=r"want parts of instruction, input, both .* \(got answer, 0.5\)"):
        damaged(MOOD, "typos", 0.5, "answer")
    with pytest.raises(ValueError, match="1.5"):
        damaged(MOOD, "typos", 1.5)


def test_strength_adds_on_in_long_texts_too() -> None:
    found = edits.case(" ".join(["word"] * 300), [], Random(0))
    few, many = (chosen(found, strength, Random(1)) for strength in (0.01, 0.05))
    assert len(few) == 3 and {*few} < {*many}


def test_chinese_labels_are_kept() -> None:
    said = Said(
        "请判断这条评论的情感是满意的还是失望的选择其中一个",
        "物流很快下次还会再来买",
        ("满意的",),
        ("满意的", "失望的"),
    )
    for name in UNITS:
        found = damaged(said, name, 1.0)
        assert "满意的" in found.instruction and "失望的" in found.instruction
    assert damaged(said, "homophones", 1.0).instruction != said.instruction
