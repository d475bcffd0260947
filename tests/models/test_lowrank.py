"""LoRA's layers computed in one go equal PEFT's: values and gradients; where they are more than LoRA, nothing changes.

M tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear

import learning
import tiny
from instructrec.models import lowrank
from instructrec.models.lowrank import Quick
from instructrec.models.methods import get
from instructrec.training.batching import collate
from instructrec.training.loss import token_losses

OPTIONS: dict[str, Any] = {"rank": 3, "alpha": 5.0, "dropout": 0.0, "target": "all-linear"}


def attached(kind: str = "llama", **more: Any) -> Any:
    """A model with an adapter whose B is not zero."""
    model = get("lora").attach(tiny.model(kind).double(), OPTIONS | more, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model.double().train()


def gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients on a few rows of unequal length."""
    batch = collate(learning.rows([5, 17, 9], 290), 0)
    model.zero_grad(set_to_none=True)
    loss = token_losses(model, batch).mean()
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each layer that is computed in one go."""
    calls: list[int] = []
    apply = lowrank._Update.apply
    monkeypatch.setattr(lowrank._Update, "apply", lambda *given: calls.append(1) or apply(*given))
    return calls


def test_layers_of_an_encoder_decoder() -> None:
    model = get("lora").attach(tiny.model("t5").double(), OPTIONS, 0).double().train()
    layer = next(module for module in model.modules() if type(module) is Linear)
    inputs = torch.randn(4, 3, layer.in_features, dtype=torch.float64)
    wanted = layer(inputs)
    lowrank.quicken(model)
    assert isinstance(layer, Quick)
    torch.testing.assert_close(layer(inputs), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
def test_gradients_are_those_of_peft(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(kind)
    loss, wanted = gradients(model)
    calls = counted(monkeypatch)
    lowrank.quicken(model)
    again, got = gradients(model)
    assert len(calls) == sum(isinstance(module, Quick) for module in model.modules()) > 0
    assert again == pytest.approx(loss, abs=1e-10) and got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-10)
        assert gradient.abs().max() > 0


def test_a_bias_is_added_and_numeric_gradients_agree() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = ((4, 6), (5, 6), (5,), (2, 6), (5, 2))  # inputs [M, I], W [O, I], bias [O], A [R, I], B [O, R]
    inputs, weight, bias, down, up = (torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes)
    wanted = inputs @ weight.t() + bias + 0.7 * (inputs @ down.t()) @ up.t()
    torch.testing.assert_close(lowrank._Update.apply(inputs, weight, bias, down, up, 0.7), wanted)

    def at(inputs: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return lowrank._Update.apply(inputs, weight, bias, down, up, 0.7)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(at, tuple(one.requires_grad_() for one in (inputs, down, up)))


def test_what_is_more_than_lora_is_left_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    for options in ({"dropout": 0.5}, {"dora": True}):
        model = attached(**options)
        lowrank.quicken(model)
        gradients(model)
    assert not calls
    model = attached()
    lowrank.quicken(model)
    with model.disable_adapter():
        gradients_off = token_losses(model, collate(learning.rows([5, 9], 290), 0)).sum()
    assert not calls and torch.isfinite(gradients_off)
    layer = next(module for module in model.modules() if isinstance(module, Quick))
    inputs = torch.randn(3, layer.in_features, dtype=torch.float64)
    wanted = layer(inputs)
    assert calls
    calls.clear()
    handle = layer.lora_A["default"].register_forward_hook(lambda *_: None)
    torch.testing.assert_close(layer(inputs), wanted)
    handle.remove()
    layer.merge()
    torch.testing.assert_close(layer(inputs), wanted)
    assert not calls


def test_under_autocast_it_is_at_least_as_exact_as_peft() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 96, bias=False)
    model = torch.nn.Sequential(base)
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    inputs = torch.randn(32, 64)
    exact = tuned.double()(inputs.double())
    tuned.float()
    for module in tuned.modules():
        if type(module) is Linear:
            module.base_layer.to(torch.bfloat16)
    errors = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append(float((tuned(inputs) - exact).abs().mean().detach()))
        lowrank.quicken(tuned)
    assert errors[1] <= errors[0] * 1.02 < 0.1


def test_a_copy_computes_with_its_own_weights() -> None:
    model = attached().float()
    lowrank.quicken(model)
    other = copy.deepcopy(model)
    loss, _ = gradients(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert gradients(other)[0] != pytest.approx(loss, abs=1e-3) and gradients(model)[0] == loss
