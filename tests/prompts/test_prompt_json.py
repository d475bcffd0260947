"""prompt.json: what is kept with a run brings back the same prompts, and nothing else."""

from __future__ import annotations

import json

import pytest
from prompt_cases import chat, every_case, renderer, tokenizer

import tiny
from instructrec.errors import InputError
from instructrec.prompts.choose import make_renderer
from instructrec.prompts.template import Renderer

CHANGED = "prompt.json: sha256: the prompt was changed after tuning, the model would be asked differently"


@every_case
def test_it_comes_back_as_it_was(kind: str, template: str) -> None:
    made = renderer(kind, template, "Be kind.")
    kept = json.loads(json.dumps(made.to_json(), ensure_ascii=False))
    again = Renderer.from_json(kept, tiny.tokenizer(kind), "prompt.json")
    record = chat("Where?", "Here.", "房子", "ok")
    assert again.render(record) == made.render(record)
    assert again.to_json() == made.to_json()


def test_what_it_holds() -> None:
    kept = renderer("qwen", "model", "Be kind.").to_json()
    assert {name: kept[name] for name in kept if name not in ("template", "sha256")} == {
        "format": 1,
        "name": "model",
        "own": True,
        "system": "Be kind.",
        "end_token": "<|im_end|>",
        "reading": {"strokes": 1},
    }
    assert kept["template"] == tokenizer("qwen").chat_template


def test_any_change_is_refused() -> None:
    kept = renderer("qwen", "alpaca", "Be kind.").to_json()
    template = kept["template"]
    changed = [kept | {"template": template[:place] + "~" + template[place + 1 :]} for place in range(len(template))]
    changed += [
        kept | {"system": "Be kind. "},
        kept | {"name": "model"},
        kept | {"own": True},
        kept | {"own": "False"},
        kept | {"end_token": "<|endoftext|>"},
        kept | {"reading": {"strokes": 2}},
        kept | {"reading": "{'strokes': 1}"},
        kept | {"more": 1},
        kept | {"sha256": "0" * 64},
        {name: kept[name] for name in kept if name != "sha256"},
        {name: kept[name] for name in kept if name != "system"},
    ]
    for value in changed:
        with pytest.raises(InputError) as caught:
            Renderer.from_json(value, tokenizer("qwen"), "prompt.json")
        assert str(caught.value) == CHANGED


@pytest.mark.parametrize(("value", "got"), [({}, "None"), ({"format": 2}, "2"), ({"format": "1"}, "'1'"), ([], "None")])
def test_another_format_is_refused(value: object, got: str) -> None:
    with pytest.raises(InputError) as caught:
        Renderer.from_json(value, tokenizer("qwen"), "runs/x/prompt.json")  # type: ignore[arg-type]
    assert str(caught.value) == f"runs/x/prompt.json: format: unknown prompt format (got {got}, want 1)"


def test_a_tokenizer_with_another_end_token_is_refused() -> None:
    kept = make_renderer(tiny.tokenizer("qwen"), "plain").to_json()
    with pytest.raises(InputError) as caught:
        Renderer.from_json(kept, tiny.tokenizer("llama"), "prompt.json")
    assert str(caught.value) == "prompt.json: end_token: this tokenizer ends answers differently (want '<|im_end|>')"
