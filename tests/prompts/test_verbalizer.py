"""Which words stand for which label, and what is told where they can't."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tiny
from instructrec.errors import InputError
from instructrec.prompts.verbalizer import Verbalizer, ids_in_place, learn


def test_labels_speak_for_themselves() -> None:
    made = Verbalizer.of(["lost_or_stolen_card", "正面", "Refund", "Refund", " a "])
    assert made.words == {
        "lost_or_stolen_card": ("lost or stolen card",), "正面": ("正面",), "Refund": ("Refund",), " a ": ("a",)
    }  # fmt: skip
    assert made.labels == ("lost_or_stolen_card", "正面", "Refund", " a ")
    # two labels that would read the same keep their spelling
    assert Verbalizer.of(["a_b", "a b", "c_d"]).words == {"a_b": ("a_b",), "a b": ("a b",), "c_d": ("c d",)}


def test_words_of_a_file_are_text(tmp_path: Path) -> None:
    file = tmp_path / "v.yaml"
    file.write_text("positive: [good, great]\nnegative: no\nneutral: 1e-4\n", encoding="utf-8")
    made = Verbalizer.from_file(file)
    assert made.words == {"positive": ("good", "great"), "negative": ("no",), "neutral": ("1e-4",)}
    assert made.candidates == [("positive", "good"), ("positive", "great"), ("negative", "no"), ("neutral", "1e-4")]
    assert (made.shown("positive"), made.label_of(" GREAT"), made.label_of("bad")) == ("good", "positive", None)
    assert Verbalizer.from_file(file, ["negative", "positive"]).labels == ("negative", "positive")
    again = tmp_path / "v.json"
    again.write_text('{"yes": "正面", "no": ["负面"]}', encoding="utf-8")
    assert Verbalizer.from_file(again).to_json() == {"yes": ["正面"], "no": ["负面"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: x\n", "verbalizer: got 1 labels, want at least 2"),
        ("", "verbalizer: got 0 labels, want at least 2"),
        ("a: x\nb: []\n", "verbalizer: b: no word stands for it (want at least one)"),
        ("a: x\nb: ' '\n", "verbalizer: b: got '', want a word without spaces around it"),
        ("a: [x, y]\nb: [z, x]\n", "verbalizer: 'x' stands for both 'a' and 'b'"),
        ("a: [x, x]\nb: z\n", "verbalizer: a: 'x' is given twice"),
        ("a: x\nb: {c: d}\n", "b: want a word or a list of words"),
        ("- a\n- b\n", "got list, want lines such as positive: [good, great]"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "v.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Verbalizer.from_file(file)
    assert str(caught.value) == f"{file}: {message}"


def test_a_label_without_words_is_named(tmp_path: Path) -> None:
    file = tmp_path / "v.yaml"
    file.write_text("positive: good\nnegative: bad\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Verbalizer.from_file(file, ["positive", "negativ"])
    assert str(caught.value) == f"{file}: no words for label 'negativ', did you mean 'negative'?"
    file.write_text("a: x\nb: y\na: z\n", encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(f"{file}:3: a: given twice")):
        Verbalizer.from_file(file)
    with pytest.raises(InputError, match="unknown label 'postive', did you mean 'positive'"):
        Verbalizer.of(["positive", "negative"]).shown("postive")


def test_words_are_learned_from_what_a_model_says() -> None:
    words = ["good", "bad", "great", "awful", "the", "so"]
    generator = np.random.default_rng(0)
    labels = ["pos"] * 6 + ["neg"] * 2
    logits = generator.normal(0, 0.1, (8, 6)) + np.array([0, 0, 0, 0, 4.0, 3.0])  # the, so: likely everywhere
    logits[:6] += np.array([2.0, 0, 1.0, 0, 0, 0])
    logits[6:] += np.array([0, 1.0, 0, 2.0, 0, 0])
    probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert learn(probabilities, labels, words, 2).words == {"pos": ("good", "great"), "neg": ("awful", "bad")}
    with pytest.raises(InputError, match="6 candidates for 4 words of 2 labels are few"):
        learn(probabilities, labels, words, 4)


def test_a_frequent_word_that_fits_two_labels_goes_to_one() -> None:
    probabilities = np.log(np.array([[0.6, 0.2, 0.1], [0.1, 0.5, 0.2], [0.2, 0.1, 0.5]]))
    assert learn(probabilities, ["a", "b", "c"], ["x", "y", "z"], 1).words == {"a": ("x",), "b": ("y",), "c": ("z",)}


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_words_are_cut_as_they_stand(kind: str) -> None:
    tokenizer = tiny.tokenizer(kind)
    for before, word, after in (
        ("Is it positive? It is ", "negative", "."),
        ("", "cold", " answer"),
        ("这部电影：", "很棒", "！"),
        ("", "lost or stolen card", ""),
        ("It is\n", "好", ""),
    ):
        ids = ids_in_place(tokenizer, before, word, after)
        whole = tokenizer(before + word + after, add_special_tokens=False)["input_ids"]
        assert any(whole[place : place + len(ids)] == ids for place in range(len(whole)))
        assert tokenizer.decode(ids).strip() == word


def test_a_word_inside_a_token_has_no_probability() -> None:
    tokenizer = tiny.tokenizer("qwen")
    with pytest.raises(InputError) as caught:
        ids_in_place(tokenizer, "Is it pos", "itive", "")
    assert str(caught.value).startswith("verbalizer: 'itive': this tokenizer reads it together with the text beside it")
    with pytest.raises(InputError, match="makes no token of it"):
        ids_in_place(tokenizer, "a", "", "b")
