"""What the prompt tests share: every tokenizer with every template that applies to it, and conversations to render."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest

import tiny
from instructrec.data.records import Record, Turn
from instructrec.prompts.choose import make_renderer
from instructrec.prompts.template import Renderer

USER_JINJA = """\
{% for m in messages %}
{% if m.role == 'assistant' %}A: {{ m.content }}{{ eos_token }}{% else %}Q ({{ m.role }}): {{ m.content }}{% endif %}

{% endfor %}
{% if add_generation_prompt %}A: {% endif %}
"""
TEMPLATES = ("model", "alpaca", "plain", "mine")
CASES = [case for case in itertools.product(tiny.TOKENIZERS, TEMPLATES) if case != ("gpt2", "model")]
OWN = [kind for kind in tiny.TOKENIZERS if kind != "gpt2"]
every_case = pytest.mark.parametrize(("kind", "template"), CASES)
every_own = pytest.mark.parametrize("kind", OWN)


@functools.cache
def tokenizer(kind: str) -> Any:
    """One tokenizer of each kind, not to be changed."""
    return tiny.tokenizer(kind)


@functools.cache
def renderer(kind: str, template: str, system: str = "") -> Renderer:
    """One renderer of each case, made as `make_renderer` makes it."""
    if template == "mine":
        return Renderer(tokenizer(kind), USER_JINJA, name="mine.jinja", system=system, own=False)
    return make_renderer(tokenizer(kind), template, system)


def from_file(kind: str, path: Path, source: str) -> Renderer:
    """A renderer of a Jinja file that a user wrote."""
    path.write_text(source, encoding="utf-8")
    return make_renderer(tokenizer(kind), str(path))


def chat(*texts: str, system: str = "") -> Record:
    """A conversation of alternating user and assistant texts, every answer supervised."""
    turns = [Turn("system", system)] if system else []
    for number, text in enumerate(texts):
        turns.append(Turn("assistant", text, supervised=True) if number % 2 else Turn("user", text))
    return Record(tuple(turns))


def ids_of(kind: str, text: str) -> list[int]:
    """Plain ids of a text, without BOS."""
    return list(tokenizer(kind)(text, add_special_tokens=False)["input_ids"])


def supervised_runs(kind: str, rendered: Any) -> list[str]:
    """Decoded text of each run of supervised tokens, special tokens included."""
    runs: list[list[int]] = []
    for place, (token, learned) in enumerate(zip(rendered.ids, rendered.supervised, strict=True)):
        if learned and (place == 0 or not rendered.supervised[place - 1]):
            runs.append([])
        if learned:
            runs[-1].append(token)
    return [tokenizer(kind).decode(run, clean_up_tokenization_spaces=False) for run in runs]
