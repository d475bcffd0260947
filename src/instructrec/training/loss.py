"""Negative log-likelihood of the supervised tokens, with logits at those positions only.

B rows, T tokens, D width, N supervised positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from ..prompts.template import Rendered
from .batching import Batch, by_length, collate


@contextmanager
def logits_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """While this lasts, the model computes logits [1, N, V] at `positions` [N] of the flattened B*T tokens.

    `logits_to_keep` takes one set of positions for all rows, and calling the head ourselves would lose what some
    families do after it (Gemma-2's soft cap, Cohere's scale). Instead the hidden states are picked out on their way
    into the head, and everything after it is the model's own.
    """
    head = model.get_output_embeddings()

    def pick(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]  # [B, T, D]
        return (hidden.reshape(-1, hidden.shape[-1])[positions].unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def token_losses(model: Any, batch: Batch, head_of: Any = None) -> torch.Tensor:
    """Negative log-likelihood in nats of each supervised token, [N], fp32.

    head_of: the model that owns the output layer, where `model` is only a parallel wrapper around it.
    """
    with logits_at(model if head_of is None else head_of, batch.positions):
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits  # [1, N, V]
    logits = logits[0].float() if logits.dtype in (torch.bfloat16, torch.float16) else logits[0]
    return functional.cross_entropy(logits, batch.targets, reduction="none")


@torch.no_grad()
def row_losses(
    model: Any, rows: Sequence[Rendered], *, pad_id: int, batch_tokens: int, autocast: Any = None
) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, supervised tokens) of each row, in the order given."""
    lengths = [len(row.ids) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for numbers in by_length(lengths, order, batch_tokens, None):
            batch = collate([rows[number] for number in numbers], pad_id, numbers).to(device)
            with autocast() if autocast else torch.no_grad():
                losses = token_losses(model, batch)
            owner = torch.div(batch.positions, batch.ids.shape[1], rounding_mode="floor")
            sums = torch.zeros(len(numbers), dtype=torch.float64, device=device).index_add_(0, owner, losses.double())
            counts = torch.bincount(owner, minlength=len(numbers))
            for place, number in enumerate(numbers):
                result[number] = (float(sums[place]), int(counts[place]))
    finally:
        model.train(was_training)
    return result


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """Nats per supervised token over all rows."""
    tokens = sum(count for _, count in losses)
    return sum(total for total, _ in losses) / tokens if tokens else float("nan")
