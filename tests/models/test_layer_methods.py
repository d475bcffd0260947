"""Task adapter, IA3, DoRA and rsLoRA against their formulas; their files; merging; checkpointing; reading plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import learning
import tiny
from instructrec.errors import InputError
from instructrec.models.methods import METHODS, trained_parameters
from instructrec.models.reading import Reading, ReadingPlan, lay

IDS = torch.arange(6, 36).reshape(1, 30)  # [B, T]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"dora": True, "rank": 4}),
    "rslora": ("lora", {"rslora": True, "rank": 4}),
    "ia3": ("ia3", {}),
    "houlsby": ("adapter", {"width": 4}),
    "pfeiffer": ("adapter", {"width": 4, "placement": "pfeiffer", "activation": "silu"}),
}
THROUGH_PEFT = [name for name, (method, _) in CASES.items() if method != "adapter"]
ADAPTER, IA3 = METHODS["adapter"], METHODS["ia3"]


def attached(case: str, kind: str = "llama", **more: Any) -> Any:
    """A tiny model with the method of a case, all of whose weights do something."""
    name, options = CASES[case]
    model = METHODS[name].attach(tiny.model(kind), learning.options_of(METHODS[name]) | options | more, 0).eval()
    stirred(trained_parameters(model).values())
    return model


@torch.no_grad()
def stirred(weights: Any, seed: int = 5) -> None:
    draw = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(0.03 * torch.randn(weight.shape, generator=draw))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


# -- formulas --------------------------------------------------------------------------------------------------------

Layers = list[tuple[str, Any]]


def by_hand(
    case: str, change: Callable[[torch.nn.Linear, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]
) -> None:
    """The tuned model's logits are those of the backbone whose linear layers are replaced by `change`."""
    model = attached(case)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in trained_parameters(model).items():
        layer, _, own = name.removeprefix("base_model.model.").partition(
            ".bottleneck." if "bottleneck" in name else ".default_"
        )
        if "bottleneck" not in name:
            layer, own = next(
                (layer.partition(f".{key}")[0], key)
                for key in ("lora_A", "lora_B", "lora_magnitude", "ia3_l")
                if f".{key}" in layer
            )
        weights.setdefault(layer, {})[own.removeprefix("default.")] = weight.detach()
    base = tiny.model("llama")
    for name, own in weights.items():
        layer = base.get_submodule(name)
        layer.forward = lambda x, layer=layer, own=own: change(layer, x, own)
    assert len(weights) >= 2
    assert close(logits(base), logits(model)) and not close(logits(tiny.model("llama")), logits(model))


def test_the_formula_of_dora() -> None:
    def change(layer: torch.nn.Linear, x: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        weight = layer.weight + 32.0 / 4 * own["lora_B"] @ own["lora_A"]
        return functional.linear(x, own["lora_magnitude"][:, None] * weight / weight.norm(dim=1, keepdim=True))

    by_hand("dora", change)


def test_the_formula_of_rslora() -> None:
    def change(layer: torch.nn.Linear, x: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.linear(x, layer.weight + 32.0 / 4**0.5 * own["lora_B"] @ own["lora_A"])

    by_hand("rslora", change)


def test_the_formula_of_ia3() -> None:
    def change(layer: torch.nn.Linear, x: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        scale = own["ia3_l"]
        if scale.shape == (1, layer.in_features):  # of what goes into the last feed-forward layer
            return functional.linear(x * scale[0], layer.weight)
        return functional.linear(x, layer.weight) * scale[:, 0]

    by_hand("ia3", change)


@pytest.mark.parametrize(("case", "bend"), [("houlsby", functional.gelu), ("pfeiffer", functional.silu)])
def test_the_formula_of_the_task_adapter(case: str, bend: Any) -> None:
    def change(layer: torch.nn.Linear, x: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = functional.linear(x, layer.weight)
        inner = bend(functional.linear(hidden, own["down.weight"], own["down.bias"]))
        return hidden + functional.linear(inner, own["up.weight"], own["up.bias"])

    by_hand(case, change)


def test_the_places_of_the_task_adapter() -> None:
    def places(case: str) -> set[str]:
        return {name.partition(".bottleneck")[0].partition("layers.")[2] for name in trained_parameters(attached(case))}

    inside = {"0.mlp.down_proj", "1.mlp.down_proj"}
    assert places("pfeiffer") == inside
    assert places("houlsby") == inside | {"0.self_attn.o_proj", "1.self_attn.o_proj"}


def test_a_model_without_places_is_refused() -> None:
    model = tiny.model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(InputError) as caught:
        ADAPTER.attach(model, learning.options_of(ADAPTER), 0)
    assert str(caught.value) == "adapter: found no layers of attention and feed-forward parts in this model"


def test_adapter_weights_in_fp32_work_behind_a_bf16_model() -> None:
    model = ADAPTER.attach(tiny.model("llama", dtype=torch.bfloat16), learning.options_of(ADAPTER), 0)
    assert {weight.dtype for weight in trained_parameters(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(model).isfinite().all()


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", THROUGH_PEFT)
def test_peft_loads_what_is_saved(case: str, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = attached(case, kind)
    METHODS[CASES[case][0]].save(model, tmp_path, "someone/base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(tiny.model(kind), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("target", [["k_proj", "model.layers.0.mlp.down_proj"], "all-linear"])
def test_an_ia3_that_peft_made_is_taken(target: Any, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    inside = ["model.layers.0.mlp.down_proj"]
    config = IA3Config(target_modules=target, feedforward_modules=inside, task_type="CAUSAL_LM", init_ia3_weights=False)
    model = get_peft_model(tiny.model("llama"), config).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(IA3.load(tiny.model("llama"), tmp_path).eval()), logits(model))


def change_config(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | values).items() if v != "gone"}))
    return file


def refused(case: str, folder: Path, kind: str = "llama") -> str:
    """What loading says, after making sure that the model was not touched."""
    model = tiny.model(kind)
    before, modules = logits(model), [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as caught:
        METHODS[CASES[case][0]].load(model, folder)
    assert [name for name, _ in model.named_modules()] == modules and torch.equal(logits(model), before)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peft_type": "LORA"}, "peft_type: not IA3 (got 'LORA')"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: this version takes plain IA3 only (got ['lm_head'])"),
        ({"exclude_modules": "(a+)+"}, "exclude_modules: this version takes plain IA3 only (got '(a+)+')"),
        ({"target_modules": "(a+)+$"}, "target_modules: not names of layers (got '(a+)+$', want a list of names)"),
        ({"feedforward_modules": ".*"}, "feedforward_modules: not names of layers (got '.*', want a list of names)"),
    ],
)
def test_an_ia3_of_another_kind(values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    IA3.save(attached("ia3"), tmp_path, "tiny")
    file = change_config(tmp_path, **values)
    assert refused("ia3", tmp_path) == f"{file}: {reason}"


def test_an_ia3_whose_weights_do_not_fit(tmp_path: Path) -> None:
    IA3.save(attached("ia3"), tmp_path, "tiny")
    unfit = f"{tmp_path}: the adapter does not fit this backbone: "
    assert refused("ia3", tmp_path, "gpt2").startswith(unfit + "no linear layer is called ")
    change_config(tmp_path, feedforward_modules=[])
    name = "base_model.model.model.layers.0.mlp.down_proj.ia3_l"
    assert refused("ia3", tmp_path) == f"{unfit}{name} (got [1, 64], want [32, 1])"


def test_a_dora_whose_lengths_are_missing(tmp_path: Path) -> None:
    METHODS["lora"].save(attached("dora"), tmp_path, "tiny")
    change_config(tmp_path, use_dora=False)
    unfit = f"{tmp_path}: the adapter does not fit this backbone: it does not know "
    assert refused("dora", tmp_path) == unfit + "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peft_type": "LORA"}, "peft_type: not a bottleneck adapter (want 'BOTTLENECK')"),
        ({"width": 0}, "width: out of range (got 0, want a whole number from 1 upwards)"),
        ({"width": True}, "width: out of range (got True, want a whole number from 1 upwards)"),
        ({"width": "gone"}, "width: missing"),
        ({"dropout": 1.0}, "dropout: out of range (got 1.0, want a number from 0 to below 1)"),
        ({"placement": ["houlsby"]}, "placement: unknown (got ['houlsby'], want houlsby or pfeiffer)"),
        ({"activation": "tanh"}, "activation: unknown (got 'tanh', want gelu or relu or silu)"),
        ({"widht": 3}, "widht: unknown, did you mean 'width'?"),
    ],
)
def test_a_task_adapter_of_another_kind(values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    ADAPTER.save(attached("houlsby"), tmp_path, "tiny")
    file = change_config(tmp_path, **values)
    assert refused("houlsby", tmp_path) == f"{file}: {reason}"


def test_a_task_adapter_whose_weights_do_not_fit(tmp_path: Path) -> None:
    ADAPTER.save(attached("houlsby"), tmp_path, "tiny")
    file = tmp_path / "adapter_model.safetensors"
    unfit = f"{tmp_path}: the adapter does not fit this backbone: "
    assert refused("houlsby", tmp_path, "gpt2").startswith(unfit)
    name = "model.layers.0.mlp.down_proj.down.weight"
    change_config(tmp_path, width=5)
    assert refused("houlsby", tmp_path) == f"{unfit}model.layers.0.mlp.down_proj.down.bias (got [4], want [5])"
    change_config(tmp_path, width=4)
    weights = load_file(file)
    weights[name][0, 0] = float("nan")
    save_file(weights, file)
    assert refused("houlsby", tmp_path) == f"{file}: {name} holds a value that is not finite"
    del weights[name]
    save_file(weights, file)
    assert refused("houlsby", tmp_path) == f"{unfit}it also wants {name}"
    file.unlink()
    assert str(file) in refused("houlsby", tmp_path)


def test_peft_says_that_it_does_not_know_a_task_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    ADAPTER.save(attached("houlsby"), tmp_path, "tiny")
    with pytest.raises((ValueError, KeyError), match="BOTTLENECK"):
        PeftModel.from_pretrained(tiny.model("llama"), tmp_path)


# -- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", THROUGH_PEFT)
def test_merging_twice_is_merging_once(case: str, kind: str) -> None:
    method, model = METHODS[CASES[case][0]], attached(case, kind)
    want = logits(model)
    merged = method.merge(model)
    weights = learning.weights_of(merged)
    assert close(logits(merged), want)
    for again in (method.merge(merged), method.merge(model)):
        assert learning.same(learning.weights_of(again), weights)


@pytest.mark.parametrize("case", THROUGH_PEFT)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_merge_that_is_refused_changes_nothing(case: str, bad: float) -> None:
    """One value of the last layer: the layers before it must not be merged when it is found."""
    method, model = METHODS[CASES[case][0]], attached(case)
    name, weight = list(trained_parameters(model).items())[-1]
    with torch.no_grad():
        weight.view(-1)[0] = bad
    before = learning.weights_of(model)
    with pytest.raises(InputError) as caught:
        method.merge(model)
    assert str(caught.value) == f"the adapter can't be merged: {name} holds a value that is not finite"
    after = learning.weights_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if key != name)


# -- checkpointing and reading plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_gradients_with_checkpointing_are_the_same(case: str, kind: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = attached(case, kind)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: weight.grad for name, weight in trained_parameters(model).items()})
    assert found[0].keys() == found[1].keys() and all(weight.abs().sum() > 0 for weight in found[0].values())
    assert all(float((found[0][name] - found[1][name]).abs().max()) <= 1e-6 for name in found[0])


PLANS = {
    "twice": ReadingPlan(strokes=(2,)),
    "deep": ReadingPlan(strokes=(2,), deep=True),
    "frozen": ReadingPlan(strokes=(2,), prior="frozen"),
    "separate": ReadingPlan(strokes=(2,), stroke_adapters="separate", deep=True),
}


def behind(case: str, plan: ReadingPlan) -> Reading:
    name, options = CASES[case]
    model = attached(case)
    for number, adapter in enumerate(plan.adapters):
        METHODS[name].add(model, adapter, learning.options_of(METHODS[name]) | options, number + 1)
        stirred((weight for key, weight in trained_parameters(model).items() if f".{adapter}" in key), number)
    return Reading(model, plan, METHODS[name].using)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", CASES)
def test_a_reading_plan_trains_and_comes_back_from_its_files(case: str, plan: str, tmp_path: Path) -> None:
    model = behind(case, PLANS[plan])
    before = {name: weight.detach().clone() for name, weight in trained_parameters(model).items()}
    how = learning.plan(epochs=2.0, batch_rows=2, learning_rate=2e-2, reading=PLANS[plan])
    data = learning.rows([20, 7, 31, 12], 290)
    run = learning.training(model, data, how)
    for step in range(len(run.steps)):
        run._step(step)
    after = trained_parameters(model)
    assert before.keys() == after.keys() and len(before) > 0
    still = [name for name in before if torch.equal(before[name], after[name])]
    # Nothing looks at what the last layer makes of an earlier reading.
    assert all(".layers.1." in name and "stroke_1" in name for name in still)
    method = METHODS[CASES[case][0]]
    method.save(model.model, tmp_path, "tiny")
    loaded = method.load(tiny.model("llama"), tmp_path)
    for name in PLANS[plan].adapters:
        method.load_more(loaded, tmp_path, name)
    assert not list(trained_parameters(loaded))
    again = Reading(loaded.eval(), PLANS[plan], method.using)
    laid = lay(data, PLANS[plan], model.strokes, pad_id=0)
    with torch.no_grad():
        want, got = (one.eval()(laid.passes, laid.positions) for one in (model, again))
        plain = Reading(tiny.model("llama"), ReadingPlan(strokes=PLANS[plan].strokes))
        untuned = plain(*(lambda rows: (rows.passes, rows.positions))(lay(data, plain.plan, model.strokes, pad_id=0)))
    assert torch.equal(got, want) and float((want[:, -3:] - untuned[:, -3:]).abs().max()) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_first_reading_is_the_backbones_own(case: str) -> None:
    """With all weights of the method spoilt, only the first reading can still be whole."""
    model = behind(case, PLANS["frozen"]).eval()
    laid = lay(learning.rows([20, 12], 290), model.plan, 2, pad_id=0)
    with torch.no_grad():
        memory = model._remember(laid.passes)
        plain = Reading(tiny.model("llama"), model.plan)
        want = plain._remember(lay(learning.rows([20, 12], 290), plain.plan, 2, pad_id=0).passes)
    assert memory is not None and want is not None
    assert all(
        torch.equal(a, b)
        for one, other in zip(memory.layers, want.layers, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_a_further_task_adapter_that_does_not_fit(tmp_path: Path) -> None:
    model = behind("houlsby", PLANS["separate"]).model
    ADAPTER.save(model, tmp_path, "tiny")
    file = tmp_path / "stroke_1" / "adapter_model.safetensors"
    loaded = ADAPTER.load(tiny.model("llama"), tmp_path)

    def says() -> str:
        with pytest.raises(InputError) as caught:
            ADAPTER.load_more(loaded, tmp_path, "stroke_1")
        return str(caught.value)

    weights = load_file(file)
    key = sorted(weights)[0]
    save_file({name: weight for name, weight in weights.items() if name != key}, file)
    assert says() == f"{file}: {key}: missing"
    file.unlink()
    assert says() == f"{file}: missing, the reading plan needs it"
