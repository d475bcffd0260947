"""Rows that begin alike, read together: the loss, the gradient and who is allowed to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from reading_cases import LORA

import learning
import tiny
from instructrec.models.kinds.decoder import collate, sharing
from instructrec.models.methods import METHODS, trained_parameters
from instructrec.models.reading import Reading, ReadingPlan, attention, install
from instructrec.models.shared_prefix import WORTH, common, lay, picked
from instructrec.prompts.template import Rendered
from instructrec.training.batching import Layout
from instructrec.training.loss import row_losses, token_losses
from instructrec.training.prefixes import may_share

DECODERS = ("llama", "gpt2", "qwen", "gemma")


def rows(seed: int = 0, shared: int = 20, count: int = 6) -> list[Rendered]:
    """Three wordings that have a system message in common, each with rows of its own; some tokens of the beginnings
    are supervised too, as an earlier answer of a conversation is."""
    draw = random.Random(seed)
    words = lambda size: [draw.randrange(5, 280) for _ in range(size)]  # noqa: E731
    system, wordings = words(shared // 2), [words(shared // 2) for _ in range(3)]
    made = []
    for number in range(count):
        ids = system + wordings[number % 3] + words(3 + 2 * number)
        end = len(ids) - 3
        made.append(Rendered(ids, [place >= end or place in (2, 3, 17) for place in range(len(ids))], end - 1, end))
    return made


def cost(group: Sequence[Rendered], length: int) -> int:
    """Tokens of the batch with beginnings of this length."""
    beginnings = {tuple(row.ids[:length]) for row in group}
    return len(beginnings) * length + len(group) * (max(len(row.ids) for row in group) - length)


def test_layout_by_hand() -> None:
    given = [[5, 6, 7, 1], [5, 6, 8, 2, 3], [4, 4, 9]]
    flags = [[True, True, False, True], [False, False, False, True, True], [True, False, True]]
    ids, positions, places, targets, owners = lay(given, flags, 2, np.array([1, 1, 0]), 0)
    assert ids.tolist() == [4, 4, 5, 6, 7, 1, 0, 8, 2, 3, 9, 0, 0]
    assert positions.tolist() == [0, 1, 0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]
    # 6 from the second beginning's first token, 1 from the 7; the last row's first token has nothing before it.
    assert (
        targets.tolist() == [6, 1, 2, 3, 9]
        and places.tolist() == [2, 4, 7, 8, 1]
        and owners.tolist() == [0, 0, 1, 1, 2]
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_other_length_leaves_fewer_tokens(seed: int) -> None:
    draw = random.Random(seed)
    group = rows(seed, draw.choice((2, 10, 40)), draw.randrange(2, 12))
    length, whose = common([row.ids for row in group])
    most = min(len(row.ids) for row in group) - 1
    least = min(cost(group, other) for other in range(most + 1))
    plain = cost(group, 0)
    if not length:
        assert least > (1 - WORTH) * plain
        return
    assert 0 < length <= most and cost(group, length) == least <= (1 - WORTH) * plain
    assert len(set(whose)) == len({tuple(row.ids[:length]) for row in group}) == whose.max() + 1
    for one, row in zip(whose, group, strict=True):
        alike = {tuple(other.ids[:length]) for number, other in zip(whose, group, strict=True) if number == one}
        assert alike == {tuple(row.ids[:length])}


@pytest.mark.parametrize(
    "ids", [[[1, 2, 3]], [[1], [1]], [[1, 2], [3, 4]], [[], [1]]], ids=("alone", "one token", "unlike", "empty")
)
def test_nothing_to_share(ids: list[list[int]]) -> None:
    assert common(ids)[0] == 0


def test_equal_rows_keep_a_token_each() -> None:
    length, whose = common([[7, 8, 9]] * 4)
    assert length == 2 and whose.tolist() == [0] * 4


def outcome(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses, and the gradients of their weighted sum (each token's another)."""
    parameters = trained_parameters(model)
    for parameter in parameters.values():
        parameter.grad = None
    losses = token_losses(model, batch)
    (losses * torch.linspace(1, 2, len(losses), dtype=losses.dtype)).sum().backward()
    return losses.detach(), {name: one.grad.clone() for name, one in parameters.items() if one.grad is not None}


def check(model: Any, group: list[Rendered]) -> None:
    """The same losses and gradients with and without sharing, in fp64."""
    apart, together = collate(group, 0), sharing(group, 0)
    assert together is not None and together.ids.numel() < 0.9 * apart.ids.numel()
    assert torch.equal(apart.targets, together.targets) and torch.equal(apart.owners, together.owners)
    (wanted, wanted_grads), (got, got_grads) = (outcome(model, batch) for batch in (apart, together))
    assert float((got - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
    scale = max(float(one.abs().max()) for one in wanted_grads.values())
    assert got_grads.keys() == wanted_grads.keys() and scale > 1e-3
    for name, one in got_grads.items():  # norms are computed in fp32 by some families
        assert float((one - wanted_grads[name]).abs().max()) <= 1e-5 * scale, name


def moved(model: Any) -> Any:
    """Trained weights away from where they start, since one of LoRA's factors is zero there."""
    torch.manual_seed(1)
    for weight in trained_parameters(model).values():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return model.eval()


def attached(kind: str, name: str) -> Any:
    backbone = tiny.model(kind, dtype=torch.float64)
    model = METHODS[name].attach(backbone, learning.options_of(METHODS[name]), 0).double()
    install(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return moved(model)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_loss_and_gradient_of_every_method(kind: str, name: str) -> None:
    model = attached(kind, name)
    assert may_share(model, training=False)
    check(model, rows())


@pytest.mark.parametrize("kind", DECODERS)
def test_of_layers_that_are_computed_again(kind: str) -> None:
    model = attached(kind, "lora").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    check(model, rows(count=4))


def test_beginnings_longer_than_a_window() -> None:
    check(attached("gemma", "lora"), rows(shared=60))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_with_the_kernels_of_the_library(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where attention is the library's own and lines up the first query with the first key."""
    model = attached(kind, name)
    monkeypatch.setattr(attention, "_by_products", lambda query: False)
    check(model, rows(shared=30))


@pytest.mark.parametrize("kind", DECODERS)
def test_of_rows_that_are_read_twice(kind: str) -> None:
    backbone = tiny.model(kind, dtype=torch.float64)
    model = moved(Reading(METHODS["lora"].attach(backbone, LORA, 0).double(), ReadingPlan(strokes=(2,))))
    layouts = [Layout(0, model.plan, 2, model=model, share=share) for share in (False, True)]
    alone, shared = (layout.batch(rows()) for layout in layouts)
    assert alone.shared is None and shared.shared is not None
    for got, wanted in zip(outcome(model, shared)[1].values(), outcome(model, alone)[1].values(), strict=True):
        assert torch.allclose(got, wanted, atol=1e-7)


def test_losses_of_rows_are_those_of_each_alone() -> None:
    model = attached("llama", "lora")
    group = rows(count=9)
    assert Layout.of(model, 0).batch(group).shared is not None
    together = row_losses(model, group, pad_id=0, batch_tokens=4096)
    alone = [row_losses(model, [row], pad_id=0, batch_tokens=4096)[0] for row in group]
    assert [count for _, count in together] == [count for _, count in alone]
    assert [nats for nats, _ in together] == pytest.approx([nats for nats, _ in alone], rel=1e-6)


# -- who may ---------------------------------------------------------------------------------------------------------


def test_not_with_another_attention() -> None:
    model = tiny.model("llama")
    assert model.config._attn_implementation == "sdpa" and not may_share(model, training=False)
    install(model)
    assert may_share(model, training=False) and may_share(model, training=True)


def test_not_where_layers_mix_tokens_otherwise() -> None:
    model = tiny.model("llama")
    install(model)
    # As a convolution over tokens does: each gets something of the one before it.
    layer = model.model.layers[0].mlp
    layer.register_forward_hook(lambda module, given, out: out + 0.5 * torch.roll(out, 1, dims=1))
    assert not may_share(model, training=False)
    assert Layout.of(model, 0).batch(rows()).shared is None


def test_not_where_attention_needs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    install(model)
    for layer in model.model.layers:
        plain = layer.self_attn.forward
        monkeypatch.setattr(layer.self_attn, "forward", lambda *a, _plain=plain, **k: _plain(*a, softcap=30.0, **k))
    assert not may_share(model, training=False)


@pytest.mark.parametrize(
    "hidden", [{"sliding_window": 12}, {"layer_types": ["chunked_attention"] * 2}], ids=["window", "chunk"]
)
def test_not_where_a_layer_sees_less_than_attention_is_told_of(hidden: dict[str, Any]) -> None:
    """As phimoe and llama4 do: rows as short as those of the trial come out the same."""
    model = tiny.model("llama")
    install(model)
    for name, value in hidden.items():
        setattr(model.config, name, value)
    assert not may_share(model, training=False)


def test_gradients_are_the_same_each_time() -> None:
    """With several threads an index that comes several times adds up in an order that changes."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for source, places in ((torch.randn(2, 3, 400, 64), [0, 1] * 8), (torch.randn(64, 600), [3, 5] * 100)):
            source.requires_grad_(True)
            out = picked(source, torch.tensor(places))
            assert torch.equal(out, source[places])
            weight = torch.randn_like(out)
            grads = {
                torch.autograd.grad(out, source, weight, retain_graph=True)[0].numpy().tobytes() for _ in range(30)
            }
            assert len(grads) == 1
    finally:
        torch.set_num_threads(before)


def test_not_in_training_with_dropout() -> None:
    method = METHODS["lora"]
    backbone = tiny.model("llama")
    install(backbone)
    model = method.attach(backbone, learning.options_of(method) | {"dropout": 0.3}, 0)  # its update is zero
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    assert not may_share(model, training=True) and may_share(model, training=False)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_only_decoders(kind: str) -> None:
    assert not may_share(tiny.model(kind), training=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_learns_the_same_with_less(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of the loop: as many tokens, fewer of them computed, the same losses."""
    from instructrec.training import loop

    found = []
    for shared in (True, False):
        with monkeypatch.context() as patch:
            if not shared:
                patch.setattr(loop, "may_share", lambda *given, **named: False)
            model = METHODS["lora"].attach(tiny.model("llama", dtype=dtype), LORA, 0)
            install(model.get_base_model())
            run = learning.training(model, rows(count=24), learning.plan(batch_rows=6, max_steps=4))
            losses = [run._step(step)["loss"] for step in range(4)]
            found.append((losses, run.outcome))
    (with_it, shared_outcome), (without, plain_outcome) = found
    assert shared_outcome.tokens == plain_outcome.tokens and plain_outcome.shared_tokens == 0
    assert 0.2 < shared_outcome.shared_share < 0.9
    assert with_it == pytest.approx(without, rel=1e-5 if dtype == torch.float32 else 0.02)
