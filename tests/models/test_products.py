"""Attention in blocks equals the library's own: values and gradients, masks of every kind, rows longer than a block.

B rows, T tokens, K keys, H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

import pytest
import torch

from instructrec.models import products

B, H, G, E = 2, 4, 2, 8


def tensors(tokens: int, keys: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(tokens * 1000 + keys)
    sizes = ((H, tokens), (G, keys), (G, keys))
    return tuple(torch.randn(B, a, b, E, generator=draw, dtype=torch.float64).requires_grad_() for a, b in sizes)


def both(given: tuple[torch.Tensor, ...], mask: torch.Tensor | None, seen: torch.Tensor, **more: float) -> None:
    """Compare with the library's function under `seen`, in every row that sees something."""
    copies = [one.detach().clone().requires_grad_() for one in given]
    got = products.attention(*given, mask, **more)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *copies, attn_mask=seen, enable_gqa=True, scale=more.get("scaling")
    ).transpose(1, 2)
    some = seen.any(dim=-1).expand(B, 1, -1)[:, 0]
    torch.testing.assert_close(got[some], wanted[some], rtol=1e-10, atol=1e-12)
    weight = torch.randn(got[some].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got[some] * weight).sum().backward()
    (wanted[some] * weight).sum().backward()
    for one, other in zip(given, copies, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kept", [10**6, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (5, 5), (3, 9), (8, 8), (20, 20), (17, 30)])
def test_causal_attention_without_a_mask(monkeypatch: pytest.MonkeyPatch, tokens: int, keys: int, kept: int) -> None:
    monkeypatch.setattr(products, "BLOCK", 8)
    monkeypatch.setattr(products, "_KEPT", kept)
    seen = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)[None, None]
    both(tensors(tokens, keys), None, seen, scaling=0.3)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("window", [None, 3, 11])
def test_masks_with_padding_windows_and_holes(monkeypatch: pytest.MonkeyPatch, window: int | None, added: bool) -> None:
    monkeypatch.setattr(products, "BLOCK", 8)
    tokens, keys = 21, 26
    place, other = torch.arange(tokens)[:, None] + keys - tokens, torch.arange(keys)[None, :]
    seen = other <= place
    if window:
        seen = seen & (place - other < window)
    seen = seen.expand(B, 1, tokens, keys).clone()
    seen[0, :, :, :4] = False  # padding on the left of one row
    seen[1, :, 18:] = False  # and of queries on the right of the other
    seen[1, :, 9:12, 2] = False
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, torch.finfo(torch.float64).min)
    both(tensors(tokens, keys), mask if added else seen, seen)


def test_blocks_look_no_further_than_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BLOCK", 4)
    seen = torch.zeros(2, 10, 12, dtype=torch.bool)
    seen[0, 1, 3] = seen[1, 2, 5] = True
    seen[1, 9, 11] = True
    assert products.reach(seen) == ((3, 6), (0, 1), (11, 12))
    inputs = tensors(10, 12)
    with torch.no_grad():
        inputs[1][:, :, 7] = inputs[2][:, :, 7] = torch.nan  # seen by nobody
    out = products.attention(*inputs, seen[:, None])
    assert out[:, :8].isfinite().all()


def test_dropout_is_drawn_again_alike_where_scores_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    for kept in (10**6, 0):
        monkeypatch.setattr(products, "_KEPT", kept)
        given = tensors(6, 6)
        torch.manual_seed(3)
        products.attention(*given, None, dropout=0.5).square().sum().backward()
        grads.append([one.grad for one in given])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    with_all = tensors(6, 6)
    products.attention(*with_all, None).square().sum().backward()
    assert not torch.allclose(with_all[0].grad, grads[0][0])
