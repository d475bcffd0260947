"""FAULTS, input 19: adapters that belong to another model, or are of another kind. Each is refused with its words, and
the model it was meant for stays as it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import learning
import tiny
from instructrec.errors import InputError
from instructrec.models.methods import METHODS

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
PLAIN = "this version takes LoRA, DoRA and rsLoRA only"


def refused(folder: Path, model: Any = None) -> str:
    """What loading says, after making sure that the model was not touched."""
    model = model or tiny.model("llama")
    ids = torch.arange(6, 26)[None]
    before, modules = model(ids).logits, [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as caught:
        METHODS["lora"].load(model, folder)
    assert [name for name, _ in model.named_modules()] == modules and torch.equal(model(ids).logits, before)
    return str(caught.value)


def change(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return file


def change_weights(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | values, file, {"format": "pt"})
    return file


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type: not LoRA (got 'IA3')"),
        ({"peft_type": ["LORA"]}, "peft_type: not LoRA (got ['LORA'])"),
        ({"use_dora": "yes"}, "use_dora: not a switch (got 'yes', want true or false)"),
        ({"use_rslora": 1}, "use_rslora: not a switch (got 1, want true or false)"),
        ({"use_qalora": True}, f"use_qalora: {PLAIN} (got True)"),
        ({"bias": "all"}, f"bias: {PLAIN} (got 'all')"),
        ({"lora_bias": True}, f"lora_bias: {PLAIN} (got True)"),
        ({"modules_to_save": ["embed_tokens"]}, f"modules_to_save: {PLAIN} (got ['embed_tokens'])"),
        ({"rank_pattern": {"q_proj": 9}}, f"rank_pattern: {PLAIN} (got {{'q_proj': 9}})"),
        ({"layer_replication": [[0, 2]]}, f"layer_replication: {PLAIN} (got [[0, 2]])"),
        ({"megatron_config": {"x": 1}, "megatron_core": "os"}, f"megatron_config: {PLAIN} (got {{'x': 1}})"),
        ({"megatron_core": "os"}, f"megatron_core: {PLAIN} (got 'os')"),
        ({"auto_mapping": {"parent_library": "os"}}, f"auto_mapping: {PLAIN} (got {{'parent_library': 'os'}})"),
        ({"init_lora_weights": "pissa"}, f"init_lora_weights: {PLAIN} (got 'pissa')"),
        ({"from_the_future": 1}, f"from_the_future: {PLAIN} (got 1)"),
        ({"r": 33}, "r: out of range (got 33, want a whole number from 1 to 32)"),
        ({"r": 10**12}, "r: out of range (got 1000000000000, want a whole number from 1 to 32)"),
        ({"r": 0}, "r: out of range (got 0, want a whole number from 1 to 32)"),
        ({"r": True}, "r: out of range (got True, want a whole number from 1 to 32)"),
        ({"r": 4.0}, "r: out of range (got 4.0, want a whole number from 1 to 32)"),
        ({"r": None}, "r: out of range (got None, want a whole number from 1 to 32)"),
        ({"lora_alpha": 0}, "lora_alpha: out of range (got 0, want a number above 0)"),
        ({"lora_alpha": float("nan")}, "lora_alpha: out of range (got nan, want a number above 0)"),
        ({"lora_alpha": float("inf")}, "lora_alpha: out of range (got inf, want a number above 0)"),
        ({"lora_alpha": "8"}, "lora_alpha: out of range (got '8', want a number above 0)"),
        ({"lora_dropout": 1}, "lora_dropout: out of range (got 1, want a number from 0 to below 1)"),
        ({"target_modules": []}, "target_modules: not names of layers (got [], want a list of names)"),
        ({"target_modules": "(a+)+$"}, "target_modules: not names of layers (got '(a+)+$', want a list of names)"),
        ({"target_modules": [["q_proj"]]}, "target_modules: not names of layers (got [['q_proj']], want a list of names)"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_kind(adapter: Path, values: dict[str, Any], reason: str) -> None:
    file = change(adapter, **values)
    started = time.process_time()
    assert refused(adapter) == f"{file}: {reason}"
    assert time.process_time() - started < 1.0


def test_layers_that_the_backbone_does_not_have(adapter: Path) -> None:
    change(adapter, target_modules=["q_proj", "v_prj"])
    unfit = f"{adapter}: the adapter does not fit this backbone: "
    assert refused(adapter) == unfit + "no linear layer is called 'v_prj', did you mean 'v_proj'?"
    change(adapter, target_modules=["q_proj", "v_proj"])
    assert refused(adapter, tiny.model("gpt2")) == unfit + "no linear layer is called 'q_proj', did you mean 'c_proj'?"


def test_shapes_of_another_backbone(adapter: Path, tmp_path: Path) -> None:
    import transformers

    config = tiny.model("llama").config
    config.hidden_size, config.head_dim = 48, 12
    wider = transformers.AutoModelForCausalLM.from_config(config)
    unfit = f"{adapter}: the adapter does not fit this backbone: {NAME} (got [4, 32], want [4, 48])"
    assert refused(adapter, wider) == unfit
    change(adapter, r=5)
    assert refused(adapter) == f"{adapter}: the adapter does not fit this backbone: {NAME} (got [4, 32], want [5, 32])"


def test_a_vocabulary_of_another_backbone(adapter: Path) -> None:
    name = "base_model.model.model.embed_tokens.weight"
    change_weights(adapter, **{name: torch.zeros(999, 32)})
    assert refused(adapter) == f"{adapter}: the adapter does not fit this backbone: it does not know {name}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite(adapter: Path, bad: float) -> None:
    weight = load_file(adapter / "adapter_model.safetensors")[NAME]
    weight[3, 31] = bad
    file = change_weights(adapter, **{NAME: weight})
    assert refused(adapter) == f"{file}: {NAME} holds a value that is not finite"


def test_weights_that_are_whole_numbers(adapter: Path) -> None:
    file = change_weights(adapter, **{NAME: torch.zeros(4, 32, dtype=torch.int32)})
    reason = "not a weight (got numbers of type I32, want floating-point)"
    assert refused(adapter) == f"{file}: {NAME}: {reason}"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_configuration_that_is_no_object(adapter: Path, text: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(text)
    assert refused(adapter).startswith(f"{file}: not a JSON object" if text == "[]" else f"{file}: not JSON: ")
    file.unlink()
    assert refused(adapter) == f"{file}: no such file"


def test_adapters_that_peft_made_are_taken(tmp_path: Path) -> None:
    """Other spellings of the same: all-linear, names with their path, half precision, no task."""
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(6, 26)[None]
    for number, target in enumerate((["model.layers.0.mlp.up_proj", "k_proj"], "all-linear")):
        config = LoraConfig(r=3, lora_alpha=5, target_modules=target, task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(tiny.model("llama"), config).eval()
        want = model(ids).logits
        model.save_pretrained(tmp_path / str(number))
        loaded = METHODS["lora"].load(tiny.model("llama"), tmp_path / str(number)).eval()
        assert torch.equal(loaded(ids).logits, want)
        assert not any(weight.requires_grad for weight in loaded.parameters())
    change(tmp_path / "1", target_modules="all-linear", task_type=None, init_lora_weights="gaussian")
    assert torch.equal(METHODS["lora"].load(tiny.model("llama"), tmp_path / "1").eval()(ids).logits, want)


def test_a_rank_that_no_layer_has_is_refused_before_the_model_is_touched() -> None:
    model = tiny.model("llama")
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as caught:
        METHODS["lora"].attach(model, learning.options_of(METHODS["lora"]) | {"rank": 33}, 0)
    assert str(caught.value) == "lora.rank: more than this model's layers have (got 33, want at most 32)"
    assert [name for name, _ in model.named_modules()] == modules


def test_a_tuned_model_of_another_kind_or_with_a_value_that_is_not_finite(tmp_path: Path) -> None:
    full = METHODS["full"]
    full.save(tiny.model("gpt2"), tmp_path / "gpt2", "tiny")
    model = tiny.model("llama")
    with pytest.raises(InputError) as caught:
        full.load(model, tmp_path / "gpt2")
    assert str(caught.value) == f"{tmp_path / 'gpt2'}: the tuned model is a gpt2, this backbone a llama"
    with torch.no_grad():
        model.model.norm.weight[5] = float("nan")
    full.save(model, tmp_path / "llama", "tiny")
    with pytest.raises(InputError) as caught:
        full.load(tiny.model("llama"), tmp_path / "llama")
    assert str(caught.value) == f"{tmp_path / 'llama'}: model.norm.weight holds a value that is not finite"
