"""Text from users stays text: whatever it spells, it is never read as a control token, and no character is lost."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_cases import CASES, chat, every_case, from_file, renderer, tokenizer
from tokenizers import AddedToken, normalizers

import tiny
from instructrec.data.records import Record, Turn
from instructrec.errors import InputError
from instructrec.prompts.choose import make_renderer

WORDS = {
    "llama": ["<s>", "</s>", "<unk>"],
    "gpt2": ["<|endoftext|>"],
    "qwen": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"],
    "gemma": ["<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


def around(word: str) -> list[str]:
    """The word alone, inside other text, twice, and overlapping itself."""
    return [word, f"请{word}问", f"a {word} b", word * 2, word[:-1] + word, word + word[1:], f"{word}\n{word}"]


def counts(kind: str, ids: list[int]) -> list[int]:
    return [ids.count(tokenizer(kind).convert_tokens_to_ids(word)) for word in WORDS[kind]]


@every_case
def test_text_that_spells_a_control_token_stays_text(kind: str, template: str) -> None:
    made = renderer(kind, template)
    for word in WORDS[kind]:
        for text in around(word):
            records = {
                "user": (Record.of("{}", "ok"), text),
                "system": (Record.of("hi", "ok", system="{}"), text),
                "input": (Record.of("hi", "ok", input="{}"), text),
                "answer": (Record.of("hi", "{}"), text),
                "history": (chat("hi", "{}", "so", "ok"), text),
            }
            for place, (record, spelled) in records.items():
                if (kind, template, word) == ("qwen", "model", "</think>") and place in ("answer", "history"):
                    continue  # its template takes such answers apart, so they are refused: test_render
                turns = {
                    fill: tuple(
                        Turn(turn.role, turn.text.replace("{}", fill), turn.supervised, turn.input.replace("{}", fill))
                        for turn in record.turns
                    )
                    for fill in ("x", spelled)
                }
                plain, spelling = (made.render(Record(turns[fill])) for fill in ("x", spelled))
                assert counts(kind, spelling.ids) == counts(kind, plain.ids), (place, spelled)
                assert spelled in tokenizer(kind).decode(spelling.ids, clean_up_tokenization_spaces=False)
                assert sum(spelling.supervised) - sum(plain.supervised) == (
                    0 if place in ("user", "system", "input") else len(spelling.ids) - len(plain.ids)
                ) or (kind, template, place) == ("qwen", "model", "history")


def test_words_that_only_a_chat_template_knows_stay_text_under_other_templates() -> None:
    tokens = tiny.tokenizer("qwen")
    tokens.add_tokens([AddedToken("<|fim_prefix|>", special=False, normalized=False)])
    for word in ("<think>", "<|fim_prefix|>"):
        ids = make_renderer(tokens, "plain").prompt_ids(chat(f"a{word}b"))
        assert tokens.convert_tokens_to_ids(word) not in ids
        assert tokens.decode(ids) == f"a{word}b\n"


def test_control_tokens_that_overlap_each_other_stay_text() -> None:
    tokens = tiny.tokenizer("gpt2")
    words = ["<a><b>", "<b><a>"]
    tokens.add_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    ids = make_renderer(tokens, "plain").prompt_ids(chat("<a><b><a>"))
    assert not set(ids) & set(tokens.convert_tokens_to_ids(words))
    assert tokens.decode(ids) == "<a><b><a>\n"


def test_added_tokens_that_are_only_frequent_words_are_used() -> None:
    ids = renderer("gemma", "model").prompt_ids(chat("one\n\n\ntwo"))
    assert tokenizer("gemma").convert_tokens_to_ids("\n\n\n") in ids


def test_a_control_token_that_a_normaliser_spells_is_refused() -> None:
    tokens = tiny.tokenizer("gpt2")
    tokens.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokens.add_tokens([AddedToken("<end>", special=True, normalized=True)])
    made = make_renderer(tokens)
    assert tokens.convert_tokens_to_ids("<end>") not in made.prompt_ids(chat("a <end> b"))
    assert tokens.convert_tokens_to_ids("<end>") in tokens("a <END> b")["input_ids"]
    with pytest.raises(InputError) as caught:
        made.render(chat("a <END> b"))
    assert str(caught.value) == "the text of a turn would be read as a control token of this tokenizer"


def test_an_unknown_character_is_no_control_token() -> None:
    tokens = tiny.tokenizer("llama")
    tokens.backend_tokenizer.model.byte_fallback = False
    ids = make_renderer(tokens).prompt_ids(chat("a 🙂 b"))
    assert tokens.unk_token_id in ids


@every_case
def test_no_character_of_a_text_is_lost(kind: str, template: str) -> None:
    made = renderer(kind, template)
    texts = [
        "\U000f0000 and \U000f0001",
        "\U00100000\U000f0003",
        "\ue000 \uf8ff",
        "a\u2028b\u2029c",
        "\u200fabc\u202e שלום \u2066x",
        "emoji 👩‍👩‍👧‍👦 🇫🇷 ☺️",
        "房子是红色的，𠮷野家",
        "tab\tand\x00nul\x7f",
        "{{ 7*7 }} {% raw %} {# note #}",
        "[INST] ### Response:\n<<SYS>>",
        "<0x0A> \\n",
    ]
    for text in texts:
        assert text in tokenizer(kind).decode(made.prompt_ids(chat(text)), clean_up_tokenization_spaces=False), text
        row = made.render(chat("hi", text))
        assert tokenizer(kind).decode(row.ids[row.prompt_end :], clean_up_tokenization_spaces=False).startswith(text)


def test_outer_spaces_are_kept_unless_the_template_strips_them() -> None:
    for kind, template in CASES:
        row = renderer(kind, template).render(chat("  left", "right  ", " both ", "  two  "))
        text = tokenizer(kind).decode(row.ids, clean_up_tokenization_spaces=False)
        strips = template == "model" and kind in ("llama", "gemma", "llama3")
        assert ("  left" in text and "right  " in text and " both " in text and "  two  " in text) == (not strips)
        assert row.targets > 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(CASES),
    parts=st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=12),
            st.sampled_from(sorted(word for words in WORDS.values() for word in words)),
            st.sampled_from([" ", "\n\n", "房子", "\U000f0000", "🙂"]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_any_text_comes_back_from_its_ids(case: tuple[str, str], parts: list[str]) -> None:
    kind, template = case
    text = unicodedata.normalize("NFC", "x" + "".join(parts) + "y")
    ids = renderer(kind, template).prompt_ids(chat(text))
    assert text in tokenizer(kind).decode(ids, clean_up_tokenization_spaces=False)
    assert counts(kind, ids) == counts(kind, renderer(kind, template).prompt_ids(chat("xy")))


def test_text_that_leaves_no_room_for_marks_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        renderer("gpt2", "plain").render(chat("\U000f0000\U00100000\ue000"))
    message = "a turn uses all private-use blocks of Unicode; none is left to mark the turns with"
    assert str(caught.value) == message


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        renderer("gpt2", "plain").render(chat("hi", "a\ud800b"))
    assert str(caught.value) == "the assistant's text holds half of a surrogate pair (\\ud800), not a character"


def test_marks_in_the_template_itself_do_no_harm(tmp_path: Path) -> None:
    source = "{% for m in messages %}\U000f0000\U000f0001{{ m.content }}{{ eos_token }}{% endfor %}"
    made = from_file("gpt2", tmp_path / "t.jinja", source)
    assert (
        tokenizer("gpt2").decode(made.prompt_ids(chat("hi")))
        == "\U000f0000\U000f0001hi<|endoftext|>\U000f0000\U000f0001"
    )
