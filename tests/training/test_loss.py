"""The loss: only at supervised positions, as the model's own head would give it, whatever stands around a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import learning
import tiny
from instructrec.training.batching import collate
from instructrec.training.loss import _ROWS, _Likelihood, logits_at, mean_loss, row_losses, token_losses

LENGTHS = [9, 40, 3, 25, 1, 60]


def cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, logit_scale=0.0625, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return CohereForCausalLM(config)


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=300, final_logit_softcapping=0.5, query_pre_attn_scalar=8, sliding_window=16,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    made = {kind: tiny.model(kind) for kind in tiny.KINDS} | {"cohere": cohere(), "gemma2": gemma2()}
    for model in made.values():
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, 0.2)
    return {name: model.eval() for name, model in made.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", [*tiny.KINDS, "cohere", "gemma2"])
def test_logits_are_the_models_own(name: str) -> None:
    model = models()[name]
    batch = collate(learning.rows(LENGTHS, 290), 0)
    want = model(input_ids=batch.ids, attention_mask=batch.mask).logits  # [B, T, V]
    with logits_at(model, batch.positions):
        got = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    assert got.shape == (1, len(batch.positions), want.shape[-1])
    assert float((got[0] - want.flatten(0, 1)[batch.positions]).abs().max()) <= 1e-5
    after = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    assert torch.equal(after, want)  # the hook is gone
    if name == "gemma2":
        assert float(got.abs().max()) <= 0.5 and float(got.abs().max()) > 0.4
    if name == "cohere":
        with logits_at(model, batch.positions):
            bare = model.lm_head(model.model(batch.ids, attention_mask=batch.mask).last_hidden_state)
        assert float((bare * model.logit_scale - got).abs().max()) <= 1e-5
        assert float((bare - got).abs().max()) > 0.1


def test_the_hook_goes_when_the_model_fails() -> None:
    model = tiny.model("llama")
    with pytest.raises(IndexError), logits_at(model, torch.tensor([99])):
        model(torch.arange(5, 9)[None])
    assert model(torch.arange(5, 9)[None]).logits.shape[:2] == (1, 4)


@torch.no_grad()
def test_token_losses_are_those_of_the_next_token(kind: str) -> None:
    model, data = tiny.model(kind), learning.rows(LENGTHS, 290)
    batch = collate(data, 0)
    want = []
    for row in data:
        logs = torch.log_softmax(model(torch.tensor([row.ids])).logits[0].double(), -1)
        flags = enumerate(row.supervised)
        want += [-float(logs[place - 1, row.ids[place]]) for place, flag in flags if flag and place]
    losses = token_losses(model, batch)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(want, abs=1e-4)


def test_padding_and_neighbours_never_change_a_row(kind: str) -> None:
    model, data = tiny.model(kind, dtype=torch.float64), learning.rows(LENGTHS, 290)
    alone = [row_losses(model, [row], pad_id=0, batch_tokens=1)[0] for row in data]
    for pad in (0, 7):
        together = row_losses(model, data, pad_id=pad, batch_tokens=10_000)
        assert [count for _, count in together] == [count for _, count in alone] == [5, 20, 2, 13, 0, 30]
        assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], rel=1e-9)


def test_row_losses_keep_the_order_and_the_mode(kind: str) -> None:
    model, data = tiny.model(kind), learning.rows(LENGTHS, 290)
    model.train()
    forwards = row_losses(model, data, pad_id=0, batch_tokens=64)
    backwards = row_losses(model, data[::-1], pad_id=0, batch_tokens=64)[::-1]
    assert [total for total, _ in forwards] == pytest.approx([total for total, _ in backwards], rel=1e-4)
    assert model.training
    assert row_losses(model, data, pad_id=0, batch_tokens=64)[0][0] == forwards[0][0]


def test_the_mean_is_over_tokens_and_not_over_rows() -> None:
    assert mean_loss([(3.0, 1), (3.0, 5)]) == 1.0
    assert mean_loss([(0.0, 0)]) != mean_loss([(0.0, 0)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, _ROWS, 2 * _ROWS + 3])
def test_losses_and_gradients_are_those_of_cross_entropy(dtype: torch.dtype, count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    one = (torch.randn(count, 50, generator=draw) * 5).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (count,), generator=draw)
    other = one.detach().clone().requires_grad_()
    wide = other.float() if dtype == torch.bfloat16 else other
    wanted = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    got = _Likelihood.apply(one, targets)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted)
    weight = torch.rand(count, generator=draw, dtype=got.dtype)
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    # Each is rounded to bf16 at another place: the probability here, its multiple there.
    bound = {"rtol": 2e-2, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(one.grad, other.grad, **bound)
    with torch.no_grad():
        torch.testing.assert_close(_Likelihood.apply(one, targets), wanted.detach())
