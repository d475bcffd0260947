"""Several run folders over one backbone: each answers as it does alone, whatever was asked before, and the weights of
the backbone are there once."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import instructrec
import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.inference.assistant import Assistant
from instructrec.inference.together import Together
from instructrec.models import methods
from instructrec.models.methods import METHODS, Method
from instructrec.models.sharing import Sharing, turn_of

ROWS = [{"instruction": f"Say {word}.", "output": word.upper()} for word in "red blue hot cold house order".split()]
QUICK: dict[str, Any] = {"precision": "fp32", "max_new_tokens": 12, "threads": 1}
QUESTIONS = [Record.of(row["instruction"]) for row in ROWS]
# A run of every method that can share, and of reading plans that switch weights while they read.
SHARING = sorted(name for name, method in METHODS.items() if method.switchable)
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in SHARING},
    "dora": {"lora": {"dora": True, "rank": 4}},
    "narrow": {"method": "adapter", "adapter": {"width": 3, "placement": "pfeiffer"}},
    "frozen": {"strokes": 2, "prior": "frozen"},
    "separate": {"method": "adapter", "strokes": 2, "stroke_adapters": "separate"},
    "slots": {"method": "ia3", "slots": 3},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders, and the tiny model `base` they were tuned on. Tests that change one take a copy."""
    place = tmp_path_factory.mktemp("runs")
    base = tiny.folder("qwen", place / "base")
    common: dict[str, Any] = {"max_steps": 4, "learning_rate": 5e-2, "held_out": "none", "tensorboard": False}
    common |= {"model": str(base), "precision": "fp32", "threads": 1}
    for name, settings in {**RUNS, "whole": {"method": "full"}}.items():
        instructrec.tune(ROWS, out=place / name, **common, **settings)
    return place


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, list[str]]:
    """What each answers when it is opened alone."""
    return {name: Assistant(place / name, **QUICK).answer(QUESTIONS) for name in [*RUNS, "base"]}


@pytest.fixture(scope="module")
def together(place: Path) -> Assistant:
    return Assistant([place / name for name in [*RUNS, "base"]], **QUICK)


def test_each_answers_as_alone_in_any_order(together: Assistant, alone: dict[str, list[str]]) -> None:
    assert together.adapters == (*RUNS, "base")
    assert len({tuple(answers) for answers in alone.values()}) > len(alone) / 2, "the runs could not be told apart"
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for number in torch.randperm(len(alone), generator=draw).tolist():
            name = together.adapters[number]
            assert together.answer(QUESTIONS, adapter=name) == alone[name], name
    first = together.adapters[0]
    assert together.answer(QUESTIONS) == alone[first] and together("Say red.") == alone[first][0]


@torch.no_grad()
def test_logits_are_bit_equal(together: Assistant, place: Path) -> None:
    ids = torch.arange(6, 26)[None]
    for name in [*together.adapters, *reversed(together.adapters)]:
        want = Assistant(place / name, **QUICK).loaded.decoder(input_ids=ids).logits
        shared = together.using(name).loaded
        with turn_of(shared.model):
            assert torch.equal(shared.decoder(input_ids=ids).logits, want), name


def test_the_backbones_weights_are_there_once(together: Assistant, place: Path) -> None:
    with turn_of(together.using("base").loaded.model):
        base = {weight.data_ptr(): weight.numel() for weight in together.loaded.backbone.model.parameters()}
    every: dict[int, int] = {}
    own = 0
    for name in together.adapters:
        loaded = together.using(name).loaded
        with turn_of(loaded.model):
            weights = {weight.data_ptr(): weight.numel() for weight in loaded.model.parameters()}
        assert base.keys() <= weights.keys(), name
        every |= weights
        alone = Assistant(place / name, **QUICK).loaded.model
        own += sum(weight.numel() for weight in alone.parameters()) - sum(base.values())
    assert sum(every.values()) == sum(base.values()) + own


def test_switching_takes_milliseconds(together: Assistant) -> None:
    one, other = (together.using(name).loaded.model for name in ("lora", "adapter"))
    started = time.perf_counter()
    for _ in range(50):
        for model in (one, other):
            with turn_of(model):
                pass
    assert (time.perf_counter() - started) / 100 < 0.02


def test_streams_of_two_runs_may_take_turns(together: Assistant, alone: dict[str, list[str]]) -> None:
    names = ("lora", "separate", "adapter", "slots", "base")
    streams = {name: together.stream("Say red.", adapter=name) for name in names}
    texts = dict.fromkeys(names, "")
    while streams:
        for name in list(streams):
            piece = next(streams[name], None)
            if piece is None:
                del streams[name]
            else:
                texts[name] += piece
    assert texts == {name: alone[name][0] for name in names}


def test_threads_wait_for_each_other(together: Assistant, alone: dict[str, list[str]]) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        mine = together.using(name)
        wrong.extend(name for _ in range(3) if mine.answer(QUESTIONS) != alone[name])

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("lora", "ia3", "frozen", "narrow", "base")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_untuned_for_a_while(together: Assistant, alone: dict[str, list[str]]) -> None:
    """Inside the block the backbone answers, also where another run is asked in between."""
    for name in ("lora", "ia3", "adapter", "dora"):
        one = together.using(name)
        with one.loaded.untuned():
            assert one.answer(QUESTIONS) == alone["base"]
            assert together.answer(QUESTIONS, adapter="narrow") == alone["narrow"]
            assert one.answer(QUESTIONS) == alone["base"]
        assert one.answer(QUESTIONS) == alone[name]


@torch.no_grad()
def test_a_turn_within_a_turn_gives_the_outer_one_back(together: Assistant) -> None:
    ids = torch.arange(6, 26)[None]
    one, other = (together.using(name).loaded for name in ("adapter", "ia3"))
    with turn_of(one.model):
        want = one.decoder(input_ids=ids).logits
        with turn_of(other.model):
            assert not torch.equal(other.decoder(input_ids=ids).logits, want)
        assert torch.equal(one.decoder(input_ids=ids).logits, want)


def test_names_and_views(place: Path, alone: dict[str, list[str]]) -> None:
    assistant = Assistant({"one": place / "lora", "other": place / "ia3"}, **QUICK)
    assert assistant.adapters == ("one", "other") and assistant.name == "one"
    other = assistant.using("other")
    assert (other.name, assistant.name) == ("other", "one")
    assert other.answer(QUESTIONS) == alone["ia3"] and assistant.answer(QUESTIONS) == alone["lora"]
    assert other("Say red.", adapter="one") == alone["lora"][0]
    assert "".join(other.chat([("user", "Say red.")], adapter="one")) == alone["lora"][0]


def test_loading_and_unloading(place: Path, alone: dict[str, list[str]]) -> None:
    assistant = Assistant([place / "lora"], **QUICK)
    bare = [name for name, _ in assistant.loaded.backbone.model.named_modules()]
    assert assistant.load(place / "adapter") == "adapter"
    assert assistant.load(place / "dora", "second") == "second"
    assert assistant.adapters == ("lora", "adapter", "second")
    gone = assistant.using("adapter")
    assert gone.answer(QUESTIONS) == alone["adapter"]
    assistant.unload("adapter")
    assert assistant.adapters == ("lora", "second")
    assert (
        assistant.answer(QUESTIONS, adapter="second") == alone["dora"] and assistant.answer(QUESTIONS) == alone["lora"]
    )
    for call, message in (
        (lambda: gone("Say red."), "adapter: 'adapter' is not loaded (any more), known: lora, second"),
        (lambda: assistant.load(place / "ia3", "lora"), f"adapter: 'lora' is loaded already ({place / 'lora'}); want another name"),
        (lambda: assistant.unload("lora"), "adapter: 'lora' is the one that this assistant asks (want another to be unloaded)"),
        (lambda: assistant.unload("seconds"), "adapter: none is called 'seconds', did you mean 'second'?"),
        (lambda: assistant("Say red.", adapter="secnd"), "adapter: none is called 'secnd', did you mean 'second'?"),
    ):  # fmt: skip
        assert says(call) == message
    assistant.using("second").unload("lora")
    with turn_of(assistant.using("second").loaded.model):
        pass
    assistant._together._sharing.forget("second")  # type: ignore[union-attr]
    assert [name for name, _ in assistant.loaded.backbone.model.named_modules()] == bare


def test_an_assistant_of_one_run(place: Path, alone: dict[str, list[str]]) -> None:
    assistant = Assistant(place / "lora", **QUICK)
    assert assistant.adapters == ("lora",) and assistant.using("lora").answer(QUESTIONS) == alone["lora"]
    assert says(lambda: assistant("Say red.", adapter="lore")) == "adapter: none is called 'lore', did you mean 'lora'?"
    message = "Assistant: 'lora' was opened alone (want a list: Assistant(['lora']))"
    assert says(lambda: assistant.load(place / "ia3")) == message


@pytest.mark.parametrize("kind", tiny.PAIRS)
def test_on_an_encoder_decoder(kind: str, tmp_path: Path) -> None:
    base = tiny.folder(kind, tmp_path / "base")
    common: dict[str, Any] = {"max_steps": 4, "learning_rate": 5e-2, "held_out": "none", "tensorboard": False}
    names = sorted(name for name in SHARING if "encoder-decoder" in METHODS[name].kinds)
    assert {"adapter", "ia3", "lora"} <= {*names}
    for name in names:
        instructrec.tune(ROWS, out=tmp_path / name, model=str(base), precision="fp32", threads=1, method=name, **common)
    wanted = {name: Assistant(tmp_path / name, **QUICK).answer(QUESTIONS) for name in [*names, "base"]}
    assert len({*map(tuple, wanted.values())}) >= 3
    assistant = Assistant([tmp_path / name for name in wanted], **QUICK)
    for name in [*wanted, *reversed(wanted)]:
        assert assistant.answer(QUESTIONS, adapter=name) == wanted[name], name


# -- what can't live together ----------------------------------------------------------------------------------------


def says(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_run_tuned_in_whole_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "instructrec.models.backbone.load", lambda *_, **__: pytest.fail("loaded before it was refused")
    )
    reason = "method 'full' tuned the whole model, which can't share a backbone: it wants an Assistant of its own"
    assert says(lambda: Assistant([place / "lora", place / "whole"], **QUICK)) == f"{place / 'whole'}: {reason}"


def test_another_backbone_is_refused(place: Path, tmp_path: Path, alone: dict[str, list[str]]) -> None:
    other = tiny.folder("qwen", tmp_path / "other", seed=1)
    assistant = Assistant([place / "lora"], **QUICK)
    for target in (other, run_on(place, tmp_path, other)):
        assert says(lambda target=target: assistant.load(target)) == (
            f"{target}: its backbone is '{other}', that of {place / 'lora'} '{place / 'base'}': "
            "those on another backbone want an Assistant of their own"
        )
    same = Path(shutil.copytree(place / "base", tmp_path / "same"))  # the same model elsewhere will do
    assert assistant.load(run_on(place, tmp_path, same), "moved") == "moved"
    assert assistant.answer(QUESTIONS, adapter="moved") == alone["ia3"] and assistant.answer(QUESTIONS) == alone["lora"]


def run_on(place: Path, tmp_path: Path, base: Path) -> Path:
    """A run folder that says it was tuned on `base`."""
    from instructrec.inference.loading import fingerprint

    run = tmp_path / f"on-{base.name}"
    shutil.copytree(place / "ia3", run, ignore=shutil.ignore_patterns("checkpoints"))
    about = json.loads((run / "run.json").read_text())
    about["backbone"] |= {"name": str(base), "fingerprint": fingerprint(str(base))}
    (run / "run.json").write_text(json.dumps(about))
    return run


def test_two_of_one_name_and_none_at_all(place: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(place / "lora", tmp_path / "lora", ignore=shutil.ignore_patterns("checkpoints"))
    assert says(lambda: Assistant([place / "lora", copy], **QUICK)) == (
        f"Assistant: two are called 'lora' ({place / 'lora'}, {copy}); "
        f"want names for them: {{'one': '{place / 'lora'}', 'other': '{copy}'}}"
    )
    assert says(lambda: Assistant([], **QUICK)) == "Assistant: no run was named (want run folders over one backbone)"


def test_a_damaged_adapter_leaves_the_others_as_they_were(
    place: Path, tmp_path: Path, alone: dict[str, list[str]]
) -> None:
    broken = Path(shutil.copytree(place / "frozen", tmp_path / "broken", ignore=shutil.ignore_patterns("checkpoints")))
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    assistant = Assistant([place / "lora", place / "narrow"], **QUICK)
    assert says(lambda: assistant.load(broken)).startswith(f"{broken / 'adapter_model.safetensors'}: ")
    assert assistant.adapters == ("lora", "narrow")
    assert [assistant.answer(QUESTIONS, adapter=name) for name in assistant.adapters] == [
        alone["lora"],
        alone["narrow"],
    ]


# -- methods that nobody has thought of ------------------------------------------------------------------------------


class Odd(Method):
    """Changes a model in every way a method may: a parameter of its own, a submodule replaced, hooks, an attribute, a
    function put in place of another, another attention."""

    name, reference, learning_rate = "odd", "this test", 1e-2

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        model.requires_grad_(False)
        model.extra = torch.nn.Parameter(torch.full((model.config.hidden_size,), 0.3))
        layer = model.model.layers[0]
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.0), torch.nn.Identity())
        layer.register_forward_pre_hook(lambda module, given: (given[0] + model.extra, *given[1:]))
        model.model.norm.register_forward_hook(lambda module, given, result: result * 1.5)
        head = model.lm_head.forward
        model.lm_head.forward = lambda hidden: head(hidden).flip(-1)
        model.odd_flag = True
        model.set_attn_implementation("eager")
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        yield model

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        return self.load(model, Path())


@pytest.mark.parametrize("kind", tiny.KINDS[:1])
def test_whatever_a_method_does_to_the_modules_is_taken_out_again(kind: str) -> None:
    model, ids = tiny.model(kind), torch.arange(6, 26)[None]
    states = [dict(vars(module)) for module in model.modules()]
    base, attention = model(ids).logits, model.config._attn_implementation
    want = Odd().load(tiny.model(kind), Path())(ids).logits
    sharing = Sharing(model)
    with sharing.recording("odd"):
        Odd().load(model, Path())
    for _ in range(2):
        assert torch.equal(model(ids).logits, base) and not hasattr(model, "odd_flag")
        assert model.config._attn_implementation == attention
        assert [vars(module).keys() for module in model.modules()] == [state.keys() for state in states]
        with sharing.turn("odd")():
            assert torch.equal(model(ids).logits, want) and model.odd_flag
            assert model.config._attn_implementation == "eager"
        sharing._put("")


class Meddler(Odd):
    """A method that changes the backbone's weights themselves, and says that it can be switched off."""

    name = "meddler"

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(2.0)
        return model


def test_a_method_that_changes_the_backbones_weights_is_refused(place: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(place / "ia3", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    about = json.loads((run / "run.json").read_text()) | {"method": "meddler"}
    (run / "run.json").write_text(json.dumps(about))
    methods.register(Meddler())
    try:
        both = {"good": str(place / "lora"), "bad": str(run)}
        message = says(lambda: Together(both, {"precision": "fp32"}))
    finally:
        del METHODS["meddler"]
    assert (
        message == "'bad' changes the backbone's own weights (model.layers.1.mlp.up_proj.weight): it can't share them"
    )
