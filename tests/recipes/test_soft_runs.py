"""Soft prompts through `tune`, run folders and answering; and a method that only a test knows, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import entries, load, refused
from safetensors.torch import load_file, save_file
from stops import figures, shaken, signalled

import instructrec
import learning
import tiny
from instructrec import cli
from instructrec.config import ExportSettings
from instructrec.errors import InputError
from instructrec.export.merged import export_run
from instructrec.inference.loading import open_target
from instructrec.models import methods
from instructrec.models.methods import Method
from instructrec.models.reading import install
from instructrec.models.soft import FIRST, prompts_of
from instructrec.recipes.tune import Interrupted

Quick = Callable[..., Any]
SOFT = ("prefix_tuning", "prompt_tuning", "p_tuning")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a run folder, without its checkpoints."""
    files = [path for path in folder.rglob("*.safetensors") if "checkpoints" not in path.parts]
    files = [path for path in files if path.name != "signatures.safetensors"]  # of rows, not weights
    return {
        f"{file.relative_to(folder)}: {key}": part for file in sorted(files) for key, part in load_file(file).items()
    }


@pytest.mark.parametrize("method", SOFT)
def test_a_run_folder_answers_here_and_through_peft(quick: Quick, base: Path, method: str, undrawn: None) -> None:
    from peft import PeftModel

    folder = quick(method=method, max_steps=3, **{method: {"length": 5}}).folder
    run = load(folder / "run.json")
    assert run["settings"][method]["length"] == 5
    loaded = open_target(str(folder), precision="fp32")
    assert loaded.backbone.max_positions == 256 - 5
    assert isinstance(instructrec.Assistant(folder, max_new_tokens=4, precision="fp32")("Please upper it", "red"), str)
    theirs = PeftModel.from_pretrained(tiny.model("qwen"), folder).eval()
    ids = torch.arange(6, 36).reshape(1, 30)
    with torch.no_grad():
        got, wanted = loaded.decoder(input_ids=ids).logits, theirs(input_ids=ids).logits[:, -30:]
        assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
        plain = tiny.model("qwen")
        install(plain)
        with loaded.untuned() as untuned:
            assert torch.equal(untuned(input_ids=ids).logits, plain(input_ids=ids).logits)
    whole = sum(weight.numel() for weight in plain.parameters())
    assert run["parameters"] - run["trained_parameters"] == whole


@pytest.mark.parametrize("method", SOFT)
def test_the_look_before_the_first_step_is_the_untuned_models(quick: Quick, tmp_path: Path, method: str) -> None:
    first = [
        entries(quick(method=name, max_steps=1, out=tmp_path / name).folder)[0]["watched"] for name in ("lora", method)
    ]
    assert first[0] == first[1]


def test_training_starts_from_what_rows_ask(quick: Quick, tmp_path: Path, undrawn: None) -> None:
    given = {"method": "prompt_tuning", "max_steps": 1, "learning_rate": 1e-12}
    found = {}
    for name, how in {"rows": {}, "text": {"text": "red"}, "words": {"init": "vocabulary"}}.items():
        folder = quick(**given, out=tmp_path / name, prompt_tuning={"length": 6, **how}).folder
        table = tiny.model("qwen").get_input_embeddings().weight.detach()
        prompts = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
        ids = torch.cdist(prompts, table).argmin(dim=1)
        assert float((prompts - table[ids]).abs().max()) < 1e-6
        found[name] = tiny.tokenizer("qwen").decode(ids)
    assert "it" in found["rows"] and found["text"].startswith("red") and found["text"].count("red") > 1
    assert len(set(found.values())) == 3


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lstm": {"p_tuning": {"encoder": "lstm", "layers": 2, "dropout": 0.3, "width": 8}},
    "frozen": {"strokes": 2, "prior": "frozen", "slots": 3, "checkpointing": True},
    "separate": {"strokes": 2, "stroke_adapters": "separate"},
}


@pytest.mark.parametrize("method", SOFT)
@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_equals_straight(
    quick: Quick, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch, method: str, case: str
) -> None:
    given = CASES[case] | {"method": method, "max_steps": 6, "eval_every": 4, "epochs": 2.0}
    straight = quick(out=tmp_path / "straight", **given).folder
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 3, 2)
        quick(**given)
    shaken(7)
    resumed = quick(resume=True, **given).folder
    assert tensors(straight) and learning.same(tensors(straight), tensors(resumed))
    assert figures(straight) == figures(resumed) and len(entries(resumed)) == 6 + 3
    files = {str(path.relative_to(resumed)) for path in resumed.glob("**/adapter_model.safetensors")}
    assert ("stroke_1/adapter_model.safetensors" in files) == (case == "separate")
    instructrec.Assistant(resumed, max_new_tokens=3, precision="fp32")("Please upper it", "red")


def test_prompts_of_separate_strokes_start_from_other_rows(quick: Quick, undrawn: None) -> None:
    given = {"method": "prefix_tuning", "max_steps": 1, "learning_rate": 1e-12, "prefix_tuning": {"length": 6}}
    weights = tensors(quick(**given, strokes=2, stroke_adapters="separate").folder)
    one, other = (weights[f"{name}adapter_model.safetensors: prompt_embeddings"] for name in ("", "stroke_1/"))
    assert float((one - other).abs().max()) > 1e-2


def test_positions_that_a_prompt_takes_are_missing_to_rows(quick: Quick, undrawn: None, tmp_path: Path) -> None:
    given = {"method": "prefix_tuning", "max_steps": 1, "prefix_tuning": {"length": 200}}
    assert refused(quick, **given, max_length=100) == (
        "max_length: more than this model can hold (got 100, want at most 56 beside the 200 of prefix_tuning)"
    )
    text = "prefix_tuning.length: leaves rows no position (got 256, want less than 256)"
    assert refused(quick, **given | {"prefix_tuning": {"length": 256}}) == text
    assert "over max_length 16; raise --max-length" in refused(quick, **given | {"prefix_tuning": {"length": 240}})
    folder = quick(**given | {"prefix_tuning": {"length": 150}}).folder
    assistant = instructrec.Assistant(folder, max_new_tokens=100, precision="fp32")
    with pytest.raises(InputError, match=r"answer may have 100; this model can hold 106 \(--max-new-tokens\)$"):
        assistant("Please upper it", "red")


def test_bad_settings_of_prompts(quick: Quick) -> None:
    for settings, text in (
        ({"length": 0}, "prompt_tuning.length: out of range (got 0, want a whole number from 1 to 1024)"),
        ({"init": "words"}, "prompt_tuning.init: unknown value (got 'words', want text, vocabulary or random)"),
        ({"init": "random", "text": "x"}, "prompt_tuning.text: needs prompt_tuning.init=text (got prompt_tuning.init=random)"),
    ):  # fmt: skip
        assert refused(quick, method="prompt_tuning", prompt_tuning=settings) == text


def test_nothing_can_be_merged(quick: Quick, tmp_path: Path, undrawn: None) -> None:
    folder = quick(method="prefix_tuning", max_steps=1).folder
    with pytest.raises(InputError) as caught:
        export_run(str(folder), str(tmp_path / "merged"), ExportSettings(precision="fp32"))
    text = "export: what method 'prefix_tuning' adds has no place in a plain model's weights"
    assert str(caught.value) == text


def test_a_run_of_another_backbone_says_so(quick: Quick, tiny_folder: Any, undrawn: None) -> None:
    folder = quick(method="prefix_tuning", max_steps=1).folder
    model = methods.get("prefix_tuning").load(tiny.model("qwen"), folder)
    assert prompts_of(model).prompts[FIRST].length == 20
    with pytest.raises(InputError, match=r"prompt_embeddings: does not fit|num_layers: does not fit"):
        methods.get("prefix_tuning").load(tiny.model("gemma"), folder)


# -- a method that only this test knows -------------------------------------------------------------------------------


class Dummy(Method):
    """A number added to each width of the last hidden state."""

    name = "dummy"
    reference = "this test"
    learning_rate = 1e-2

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        assert options == {}
        model.requires_grad_(False)
        model.shift = torch.nn.Parameter(torch.zeros(model.config.hidden_size))
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0] + model.shift.to(inputs[0].dtype), *inputs[1:]))
        return model

    def start(self, model: Any, options: Mapping[str, Any], seed: int, **known: Any) -> None:
        assert len(known["rows"]) > 10 and known["tokenizer"].is_fast
        with torch.no_grad():
            model.shift.fill_(0.5)

    def save(self, model: Any, folder: Path, base: str) -> None:
        save_file({"shift": model.shift.detach()}, folder / "extra.safetensors")

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        self.attach(model, {}, 0).shift.data = load_file(folder / "extra.safetensors")["shift"]
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        kept = model.shift.data
        model.shift.data = torch.zeros_like(kept)
        yield model
        model.shift.data = kept


@pytest.fixture
def dummy() -> Iterator[Method]:
    yield methods.register(Dummy())
    del methods.METHODS["dummy"]


def test_a_registered_method_is_tuned_with_from_the_command_line(
    dummy: Method, base: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ["--model", str(base), "--precision=fp32", "--threads=1", "--no-tensorboard", "--max-steps=3"]
    assert cli.main(["tune", str(table), "--method", "dummy", *given, "--out", str(out)]) == 0
    shift = load_file(out / "extra.safetensors")["shift"]
    moved = (shift - 0.5).abs()
    assert shift.shape == (tiny.WIDTH,) and float(moved.max()) < 0.1 and float(moved.min()) > 0
    assert load(out / "run.json")["method"] == "dummy"
    capsys.readouterr()
    assert cli.main(["run", str(out), "Please upper it", "--precision=fp32", "--max-new-tokens=3"]) == 0
    assert cli.main(["evaluate", str(out), str(table), "--precision=fp32", "--rows=4", "--max-new-tokens=3"]) == 0
    assert cli.main(["tune", str(table), "--method", "dummy", "--dummy-rate=2", *given, "--out", str(out) + "2"]) == 2
    assert "--dummy-rate" in capsys.readouterr().err
    with pytest.raises(InputError, match="^dummy: unknown setting"):
        instructrec.tune(str(table), method="dummy", dummy={"rate": 2})


def test_a_method_named_like_a_setting_gets_no_options(base: Path, table: Path, tmp_path: Path) -> None:
    class Seed(Dummy):
        name = "seed"

    methods.register(Seed())
    try:
        given = {"model": str(base), "precision": "fp32", "threads": 1, "tensorboard": False, "max_steps": 1}
        assert instructrec.tune(str(table), method="seed", out=tmp_path / "run", **given).steps == 1
    finally:
        del methods.METHODS["seed"]
