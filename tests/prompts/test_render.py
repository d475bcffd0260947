"""What is learned, what is fed, and where the instruction ends: over all tokenizers and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prompt_cases import CASES, chat, every_case, every_own, from_file, ids_of, renderer, supervised_runs, tokenizer

import tiny
from instructrec.data.records import Record, Turn
from instructrec.errors import InputError
from instructrec.prompts.builtin import ALPACA
from instructrec.prompts.choose import make_renderer
from instructrec.prompts.template import Renderer

TALK = ("Where is my parcel?", "It is on its way.", "请翻译：房子", "the house", "And the colour?", "红色的")
END = {
    "llama": "</s>",
    "gpt2": "<|endoftext|>",
    "qwen": "<|im_end|>",
    "gemma": "<eos>",
    "llama3": "<|eot_id|>",
}


def end_text(kind: str, template: str) -> str:
    """What follows an answer's words in the supervised tokens."""
    if template == "model":
        return {"llama": " </s>", "gemma": "<end_of_turn>"}.get(kind, END[kind])
    return END[kind]


@every_case
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_supervised_tokens_are_the_answers_and_their_end_tokens(kind: str, template: str, turns: int) -> None:
    row = renderer(kind, template).render(chat(*TALK[: 2 * turns]))
    expected = [answer + end_text(kind, template) for answer in TALK[1 : 2 * turns : 2]]
    if (kind, template) == ("qwen", "model"):  # once they are history its template shows answers without <think>
        assert row.skipped_turns == turns - 1
        expected = expected[-1:]
    else:
        assert row.skipped_turns == 0
    assert supervised_runs(kind, row) == expected
    assert row.targets == sum(row.supervised)


@every_case
def test_answers_that_are_not_supervised_are_not_learned(kind: str, template: str) -> None:
    turns = [Turn(turn.role, turn.text) for turn in chat(*TALK).turns]
    assert renderer(kind, template).render(Record(tuple(turns))).targets == 0
    turns[-1] = Turn("assistant", TALK[-1], supervised=True)
    row = renderer(kind, template).render(Record(tuple(turns)))
    assert supervised_runs(kind, row) == [TALK[-1] + end_text(kind, template)]
    assert row.skipped_turns == 0


def test_exact_ids_of_one_row_of_each_kind() -> None:
    question, answer = "Where is my parcel?", "It is here."
    header = {
        "llama": ([], ids_of("llama", "<s>[INST] Where is my parcel? [/INST]"), []),
        "llama3": (
            ["<|begin_of_text|>", "<|start_header_id|>"],
            [*ids_of("llama3", "user"), "<|end_header_id|>", *ids_of("llama3", "\n\n" + question), "<|eot_id|>"],
            ["<|start_header_id|>", *ids_of("llama3", "assistant"), "<|end_header_id|>", *ids_of("llama3", "\n\n")],
        ),
        "qwen": (
            ["<|im_start|>"],
            [*ids_of("qwen", "user\n" + question), "<|im_end|>", *ids_of("qwen", "\n")],
            ["<|im_start|>", *ids_of("qwen", "assistant\n"), "<think>", *ids_of("qwen", "\n\n"), "</think>"]
            + ids_of("qwen", "\n\n"),
        ),
        "gemma": (
            ["<bos>", "<start_of_turn>"],
            [*ids_of("gemma", "user\n" + question), "<end_of_turn>", "\n"],
            ["<start_of_turn>", *ids_of("gemma", "model\n")],
        ),
    }
    for kind, (start, middle, last) in header.items():
        tokens = tokenizer(kind)

        def number(token: Any, tokens: Any = tokens) -> int:
            return token if isinstance(token, int) else tokens.convert_tokens_to_ids(token)

        instruction = [number(token) for token in (*start, *middle)]
        prompt = instruction + [number(token) for token in last]
        learned = ids_of(kind, answer) + [number(END[kind] if kind != "gemma" else "<end_of_turn>")]
        if kind == "llama":  # " It is here. </s>", in the middle of a line
            learned = ids_of(kind, "x It is here. </s>")[1 if len(ids_of(kind, "x")) == 1 else len(ids_of(kind, "x")) :]
        row = renderer(kind, "model").render(chat(question, answer))
        assert row.ids == prompt + learned, kind
        assert row.supervised == [False] * len(prompt) + [True] * len(learned), kind
        assert (row.instruction_end, row.prompt_end) == (len(instruction), len(prompt)), kind


def test_the_end_token_is_learned_although_it_is_the_padding_token() -> None:
    for kind, template in (("gpt2", "alpaca"), ("llama", "model")):
        tokens = tokenizer(kind)
        assert tokens.pad_token_id == tokens.eos_token_id
        row = renderer(kind, template).render(chat("Where?", "Here."))
        assert (row.ids[-1], row.supervised[-1]) == (tokens.eos_token_id, True)


@every_own
@pytest.mark.parametrize("system", ["", "Be short. 请简短。"])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_ids_are_those_of_the_chat_template_written_out(kind: str, turns: int, system: str) -> None:
    record = chat(*TALK[: 2 * turns], system=system)
    tokens = tokenizer(kind)
    messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
    whole = ids_of(kind, tokens.apply_chat_template(messages, tokenize=False))
    row = renderer(kind, "model").render(record)
    assert whole[: len(row.ids)] == row.ids
    left_over = tokens.decode(whole[len(row.ids) :])
    assert left_over.strip() == ""
    prompt = tokens.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert ids_of(kind, prompt) == row.ids[: row.prompt_end]


@every_case
def test_bos_stands_once_where_the_tokenizer_adds_one_and_nowhere_else(kind: str, template: str) -> None:
    tokens = tokenizer(kind)
    ids = renderer(kind, template).render(chat(*TALK[:2])).ids
    if kind in ("llama", "gemma", "llama3"):
        assert ids[0] == tokens.bos_token_id and ids.count(tokens.bos_token_id) == 1
    else:
        assert ids[0] != tokens.bos_token_id


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_alpaca_begins_as_the_tokenizer_begins_a_text(kind: str) -> None:
    row = renderer(kind, "alpaca").render(Record.of("Translate to French.", "maison", input="house"))
    text = "### Instruction:\nTranslate to French.\n\n### Input:\nhouse\n\n"
    assert row.ids[: row.instruction_end] == tokenizer(kind)(text)["input_ids"]
    assert tokenizer(kind).decode(row.ids[row.instruction_end :]) == "### Response:\nmaison" + END[kind]


@every_case
def test_training_feeds_the_ids_that_serving_feeds(kind: str, template: str) -> None:
    made = renderer(kind, template)
    for record in (
        chat(*TALK[:2]),
        chat(*TALK),
        chat(*TALK[:4], system="Be short."),
        Record.of("Translate.", "maison", input="  house\n"),
    ):
        row = made.render(record)
        served = made.prompt_ids(record)
        assert row.ids[: row.prompt_end] == served
        alone = made.render(record.prompt)
        assert (alone.ids, alone.instruction_end, alone.prompt_end) == (served, row.instruction_end, len(served))
        assert not any(row.supervised[: row.prompt_end]) or len(record.turns) > 2
        assert row.instruction_end <= row.prompt_end < len(row.ids)


@every_case
def test_a_chat_carried_on_keeps_the_ids_it_had(kind: str, template: str) -> None:
    made = renderer(kind, template)
    if (kind, template) == ("qwen", "model"):
        return  # its template takes <think> out of earlier turns: said by skipped_turns, tested above
    for texts in (TALK, (" spaces ", "  both sides  ", "x\n\n", "y\n", "z", "end")):
        for turns in (1, 2):
            row = made.render(chat(*texts[: 2 * turns]))
            later = made.prompt_ids(chat(*texts[: 2 * turns + 2]))
            assert later[: len(row.ids)] == row.ids, (turns, texts)


@every_case
def test_the_instruction_ends_before_the_last_assistant_header(kind: str, template: str) -> None:
    row = renderer(kind, template).render(chat(*TALK[:4]))
    header = {
        "alpaca": "### Response:\n",
        "plain": "",
        "mine": "A: ",
        "model": {
            "llama": "",
            "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "qwen": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "gemma": "<start_of_turn>model\n",
        }.get(kind),
    }[template]
    assert tokenizer(kind).decode(row.ids[row.instruction_end : row.prompt_end]) == header


def test_a_default_system_message_is_used_only_where_a_row_has_none() -> None:
    for kind, template in CASES:
        made = renderer(kind, template, "Be kind.")
        assert made.prompt_ids(chat("hi")) == renderer(kind, template).prompt_ids(chat("hi", system="Be kind."))
        own = chat("hi", system="Be short.")
        assert made.prompt_ids(own) == renderer(kind, template).prompt_ids(own)
        assert made.with_system("").prompt_ids(chat("hi")) == renderer(kind, template).prompt_ids(chat("hi"))
        empty = Record((Turn("system", ""), Turn("user", "house")))
        assert tokenizer(kind).decode(renderer(kind, template).prompt_ids(empty)).count("house") == 1
        assert made.prompt_ids(empty) == made.prompt_ids(chat("house"))


def test_decode_and_stop_ids(kind: str) -> None:
    made = make_renderer(tiny.tokenizer(kind))
    row = made.render(chat("Where?", "The house is red. 房子"))
    assert made.decode(row.ids[row.prompt_end :]) == "The house is red. 房子"
    assert made.end_id == row.ids[-1]
    assert made.stop_ids([7]) == sorted({7, made.end_id, made.tokenizer.eos_token_id})


def test_thinking_is_switched_off_where_a_template_can() -> None:
    source = (
        "{% if enable_thinking is defined %}(quiet){% endif %}{% for m in messages %}"
        "{% if m.role == 'assistant' and enable_thinking is not defined %}<think>{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    row = Renderer(tokenizer("qwen"), source, name="x").render(chat("hi", "ho"))
    assert tokenizer("qwen").decode(row.ids) == "(quiet)hi<|im_end|>ho<|im_end|>"


def test_a_template_without_end_token_gets_the_tokenizers(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:"
    )
    made = from_file("qwen", tmp_path / "bare.jinja", source + "{% endif %}")
    row = made.render(chat("one", "two", "three", "four"))
    assert made.end_id == tokenizer("qwen").eos_token_id
    # The first answer has no end token in the text, so none is learned there.
    assert supervised_runs("qwen", row) == [" two", " four<|im_end|>"]


def test_only_the_end_token_is_learned_after_an_earlier_answer(tmp_path: Path) -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}"
    row = from_file("qwen", tmp_path / "bare.jinja", source).render(chat("one", "two", "three", "four"))
    assert supervised_runs("qwen", row) == ["two", "four<|im_end|>"]


def test_a_header_that_the_template_only_writes_with_an_answer_belongs_to_the_prompt(tmp_path: Path) -> None:
    made = from_file(
        "qwen", tmp_path / "bare.jinja", "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    )
    row = made.render(chat("one", "two", "three", "four"))
    text = "<user> one\n<assistant> two\n<user> three\n"
    assert tokenizer("qwen").decode(row.ids[: row.prompt_end]) == text + "<assistant>"
    assert tokenizer("qwen").decode(row.ids[: row.instruction_end]) == text
    assert supervised_runs("qwen", row) == [" two", " four<|im_end|>"]
    assert made.decode(row.ids[row.prompt_end :]) == "four"
    echo = "{% for m in messages %}{{ m.content }}"
    echo += "{% if m.role == 'user' and not loop.last %} On {{ m.content }}: {% endif %}"
    with pytest.raises(InputError) as caught:
        from_file("qwen", tmp_path / "echo.jinja", echo + "{% endfor %}").render(chat("one", "two"))
    assert str(caught.value) == "prompt template 'echo.jinja' changes what it puts before an answer with the turns"


WRITES = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (WRITES.replace("m.content", "m.content | replace('e', 'E')"), "rewrites the assistant's answer"),
        (
            WRITES.replace("m.content", "m.content[:3]"),
            "rewrites the text of a turn: which tokens are the answer is unknown",
        ),
        (WRITES.replace("m.content", "m.instruction"), "does not show all of the user's text"),
        (
            "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
            "does not show the assistant's answer",
        ),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "does not show all of the system's text",
        ),
        ("{% for m in messages[-1:] %}{{ m.content }}{% endfor %}", "does not show all of the system's text"),
    ],
)
def test_a_template_that_hides_or_rewrites_text_is_refused(tmp_path: Path, source: str, message: str) -> None:
    record = Record.of("Where is the house?", "over there", input="the red one", system="Be kind.")
    with pytest.raises(InputError) as caught:
        from_file("gpt2", tmp_path / "odd.jinja", source).render(record)
    assert str(caught.value) == f"prompt template 'odd.jinja' {message}"


def test_a_template_that_raises_is_quoted() -> None:
    messages = {
        "llama": "roles must alternate user/assistant/user/assistant/...",
        "gemma": "Conversation roles must alternate user/assistant/user/assistant/...",
    }
    for kind, message in messages.items():
        with pytest.raises(InputError) as caught:
            renderer(kind, "model").render(Record((Turn("user", "a"), Turn("user", "b"))))
        assert str(caught.value) == f"prompt template: {message}"


def test_an_answer_that_the_chat_template_takes_apart_is_refused() -> None:
    for record in (chat("hi", "<think>hm</think>yes"), chat("hi", "<think>hm</think>yes <|im_end|>", "so?", "ok")):
        with pytest.raises(InputError) as caught:
            renderer("qwen", "model").render(record)
        assert str(caught.value) == (
            "prompt template 'model' rewrites the text of a turn: which tokens are the answer is unknown"
        )


def test_a_tokenizer_without_end_token_is_refused() -> None:
    tokens = tiny.tokenizer("gpt2")
    tokens.eos_token = None
    with pytest.raises(InputError) as caught:
        make_renderer(tokens)
    assert str(caught.value) == "this tokenizer has no end token (eos_token): the model could never learn to stop"


def test_which_template_is_chosen(tmp_path: Path) -> None:
    assert make_renderer(tiny.tokenizer("gpt2")).source == ALPACA
    assert make_renderer(tiny.tokenizer("qwen")).name == "model"
    several = tiny.tokenizer("qwen")
    several.chat_template = {"default": several.chat_template, "tool_use": "x"}
    assert make_renderer(several).source == tokenizer("qwen").chat_template
    with pytest.raises(
        InputError, match="^template: this model brings no chat template .want alpaca, plain or a Jinja"
    ):
        make_renderer(tiny.tokenizer("gpt2"), "model")
    with pytest.raises(InputError) as caught:
        (tmp_path / "bad.jinja").write_bytes(b"x\xff")
        make_renderer(tiny.tokenizer("gpt2"), str(tmp_path / "bad.jinja"))
    assert str(caught.value) == f"{tmp_path / 'bad.jinja'}: not UTF-8 at byte 1"
    with pytest.raises(InputError) as caught:
        make_renderer(tiny.tokenizer("gpt2"), "alpacca")
    assert str(caught.value) == "template: unknown template 'alpacca', did you mean 'alpaca'?"


def test_chat_formats_by_name_are_the_models_own_if_it_has_their_mark() -> None:
    tokens = tiny.tokenizer("qwen")
    assert make_renderer(tokens, "qwen").to_json() == make_renderer(tokens, "model").to_json()
    assert make_renderer(tokens, "chatml").name == "model"
    with pytest.raises(InputError) as caught:
        make_renderer(tokens, "llama3")
    assert str(caught.value) == (
        "template: llama3: this model does not mark turns with <|start_header_id|> (its own has no such mark; "
        "want model, alpaca, plain or a Jinja file)"
    )
    tokens.chat_template = None
    with pytest.raises(InputError, match=r"does not mark turns with <\|im_start\|> \(it brings none; want"):
        make_renderer(tokens, "qwen")


def test_templates_get_what_transformers_gives_them() -> None:
    source = (
        "{% if tools is none and documents is none %}{{ pad_token }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    made = Renderer(tokenizer("qwen"), source, name="x")
    assert made.prompt_ids(chat("hi"))[0] == tokenizer("qwen").pad_token_id
