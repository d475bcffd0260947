"""Opening run folders and talking to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import instructrec
import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.inference import assistant as module
from instructrec.inference.assistant import Assistant
from instructrec.inference.loading import fingerprint, open_target
from instructrec.prompts.template import Rendered

ROWS = [{"instruction": f"Say {word}.", "output": word.upper()} for word in "red blue hot cold house order".split()]
QUICK = {"precision": "fp32", "max_new_tokens": 20, "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder on a tiny Qwen that stands beside it. Tests that change it take a copy."""
    place = tmp_path_factory.mktemp("runs")
    base = tiny.folder("qwen", place / "base")
    settings = {"max_steps": 4, "learning_rate": 2e-2, "held_out": "none", "tensorboard": False}
    instructrec.tune(ROWS, out=place / "run", model=str(base), precision="fp32", threads=1, **settings)
    return place / "run"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))


def refused(target: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_target(str(target), **({"precision": "fp32"} | options))
    return str(caught.value)


def test_answers_are_those_of_the_tuned_model(folder: Path) -> None:
    tuned, base = Assistant(folder, **QUICK), Assistant(folder.parent / "base", **QUICK)
    questions = [row["instruction"] for row in ROWS]
    answers = [tuned(question) for question in questions]
    assert answers == tuned.answer([Record.of(question) for question in questions])
    assert answers != [base(question) for question in questions]
    with tuned.loaded.untuned():
        assert [tuned(question) for question in questions] == [base(question) for question in questions]
    assert tuned("Say red.", "the colour") != answers[0]
    assert base.loaded.method is None and base.loaded.run == {}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_stream_joins_to_the_answer(kind: str, tiny_folder: Any) -> None:
    """Random models write broken characters, too."""
    for temperature in (0.0, 3.0):
        talk = Assistant(tiny_folder(kind), temperature=temperature, **QUICK)
        for question in ("Where is my parcel?", "你好", "Write the opposite of hot", "👍"):
            pieces = list(talk.stream(question))
            if module.BROKEN not in talk(question):
                assert "".join(pieces) == talk(question)
                assert all(pieces) and (len(pieces) > 1 or len(talk(question)) < 10)


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
@pytest.mark.parametrize(
    "text", ["退款需要三个工作日。", "yes 👍🏽, 龘 and é!", "naïve — Ünïcode 🇨🇭", "plain words here"]
)
def test_characters_of_several_tokens_come_whole(
    kind: str, text: str, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Assistant(tiny_folder(kind), **QUICK)
    ids = talk.loaded.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(module, "stream", lambda *_, **__: iter(ids))
    pieces = list(talk.stream("?"))
    assert "".join(pieces) == text == talk.loaded.renderer.decode(ids)
    assert len(pieces) > 1 and module.BROKEN not in "".join(pieces)


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_half_a_character_at_the_limit_is_left_out(
    kind: str, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Assistant(tiny_folder(kind), **QUICK)
    ids = talk.loaded.backbone.tokenizer("是的龘👍", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(module, "stream", lambda *_, **__: iter(ids[:-1]))
    assert "".join(talk.stream("?")) == "是的龘" == talk._whole(ids[:-1])


def test_text_after_a_stray_byte_is_not_lost(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Assistant(tiny_folder("llama"), **QUICK)
    tokens = talk.loaded.backbone.tokenizer
    ids = tokens("好龘", add_special_tokens=False)["input_ids"] + [tokens.convert_tokens_to_ids("<0xFF>")]
    ids += tokens(" and more", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(module, "stream", lambda *_, **__: iter(ids))
    text = "".join(talk.stream("?"))
    assert text.startswith("好龘") and text.endswith(" and more")


def test_a_conversation_goes_on(folder: Path) -> None:
    talk = Assistant(folder, **QUICK)
    asked: list[Rendered] = []
    real = talk._prompt
    talk._prompt = lambda record: asked.append(real(record)) or asked[-1]  # type: ignore[func-returns-value,method-assign]
    assert "".join(talk.chat([("user", "Say red.")])) == talk("Say red.")
    list(talk.chat([("user", "Say red."), ("assistant", "RED"), ("user", "Say hot.")]))
    assert asked[0].ids == asked[1].ids and len(asked[2].ids) > len(asked[0].ids)
    assert "Say hot." in talk.loaded.backbone.tokenizer.decode(asked[2].ids)


def test_a_prompt_too_long_says_both_numbers(folder: Path) -> None:
    talk = Assistant(folder, **(QUICK | {"max_new_tokens": 200}))
    long = talk.loaded.renderer.prompt_ids(Record.of("red " * 80))
    want = (
        f"<memory>: the prompt has {len(long)} tokens and the answer may have 200; this model can hold 256 "
        "(--max-new-tokens)"
    )
    for ask in (talk, lambda text: list(talk.stream(text))):
        with pytest.raises(InputError) as caught:
            ask("red " * 80)
        assert str(caught.value) == want
    fits = Assistant(folder, **(QUICK | {"max_new_tokens": 256 - len(long)}))
    assert isinstance(fits("red " * 80), str)


def test_an_unknown_option(tiny_folder: Any) -> None:
    with pytest.raises(InputError) as caught:
        Assistant(tiny_folder("llama"), temprature=0.5)
    assert str(caught.value) == "Assistant: unknown option 'temprature', did you mean 'temperature'?"


def test_another_backbone_is_refused(copy: Path, folder: Path, tmp_path: Path) -> None:
    run = json.loads((copy / "run.json").read_text())
    other = tiny.folder("qwen", tmp_path / "other", seed=1)
    run["backbone"]["name"] = str(other)
    (copy / "run.json").write_text(json.dumps(run))
    reason = f"backbone: '{other}' is not the model this run was tuned on any more"
    assert refused(copy) == f"{copy / 'run.json'}: {reason}"
    shutil.rmtree(other)
    shutil.copytree(folder.parent / "base", other)  # the same model elsewhere will do
    assert open_target(str(copy), precision="fp32").backbone.folder == str(other)


def test_fingerprints_tell_models_apart(tmp_path: Path) -> None:
    one, same, other = (tiny.folder("llama", tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert fingerprint(str(one)) == fingerprint(str(same)) != fingerprint(str(other))
    assert len(fingerprint(str(one))) == 16 and fingerprint("someone/some-model") == ""


def test_the_version_that_wrote_a_model_is_no_part_of_its_fingerprint(tmp_path: Path) -> None:
    folder = tiny.folder("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())

    def changed(**values: Any) -> str:
        turned = dict(reversed((config | values).items()))
        (folder / "config.json").write_text(json.dumps(turned, indent=7))
        return fingerprint(str(folder))

    assert "transformers_version" in config
    before = fingerprint(str(folder))
    assert before == changed(transformers_version="5.99.0") == changed()
    assert changed(rope_theta=7.0) != before
    nested = [changed(text_config={"transformers_version": version, "width": 3}) for version in ("5.1", "5.2")]
    assert nested[0] == nested[1] != before


def test_a_changed_prompt_is_refused(copy: Path) -> None:
    file = copy / "prompt.json"
    prompt = json.loads(file.read_text())
    file.write_text(json.dumps(prompt | {"system": "Be rude."}))
    reason = "sha256: the prompt was changed after tuning, the model would be asked differently"
    assert refused(copy) == f"{file}: {reason}"
    file.unlink()
    assert refused(copy) == f"{copy}: no prompt.json: without it the model would be asked differently"


def test_a_template_beside_the_runs_own_is_refused(folder: Path) -> None:
    want = f"template: '{folder}' was tuned with its own prompt (leave --template away)"
    assert refused(folder, template="plain") == want


def test_a_run_that_has_not_finished(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    want = f"{tmp_path}: no run.json: the run has not finished (go on with `instructrec tune --resume`)"
    assert refused(tmp_path) == want


@pytest.mark.parametrize("name", ["run.json", "prompt.json"])
@pytest.mark.parametrize("text", ['{"half": ', "[]"])
def test_a_damaged_file_is_named(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    assert refused(copy).startswith(f"{copy / name}: ")


def test_a_system_message_of_the_asker_is_used(folder: Path) -> None:
    plain, told = (open_target(str(folder), precision="fp32", system=system) for system in ("", "Be kind."))
    ids = told.renderer.prompt_ids(Record.of("Say red."))
    assert "Be kind." in told.backbone.tokenizer.decode(ids)
    assert "Be kind." not in plain.backbone.tokenizer.decode(plain.renderer.prompt_ids(Record.of("Say red.")))
