"""Negative log-likelihood of the supervised tokens, with logits at those positions only.

N supervised positions, V vocabulary, K pairs of positions that are compared, R readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..models.kinds import kind_of, logits_at
from ..prompts.template import Rendered
from .batching import Batch, Layout, by_length
from .processes import ALONE, Processes

_ROWS = 16  # positions whose probabilities are worked out together: they stay in the processor's cache


class _Likelihood(torch.autograd.Function):
    """Cross-entropy [N] in fp32 (fp64 for fp64) of logits [N, V] and targets [N].

    The gradient, probabilities less one at the target, is kept in the logits' own type; written out there would be
    fp32 copies of the logits, of their logarithms and of either's gradient, the most that a step holds of anything.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        wide = torch.float32 if logits.dtype in (torch.bfloat16, torch.float16) else logits.dtype
        wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), dtype=wide, device=logits.device)
        shares = torch.empty_like(logits) if wanted else logits
        rows = _ROWS if logits.device.type == "cpu" else len(targets)
        for start in range(0, len(targets), max(1, rows)):
            part, target = logits[start : start + rows], targets[start : start + rows, None]
            logs = torch.log_softmax(part.to(wide), dim=-1)
            losses[start : start + rows] = -logs.gather(1, target)[:, 0]
            if wanted:
                shares[start : start + rows] = logs.exp_().scatter_add_(1, target, logs.new_full(target.shape, -1.0))
        if wanted:
            ctx.save_for_backward(shares)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (shares,) = ctx.saved_tensors
        return shares * gradient[:, None].to(shares.dtype), None


class _Apart(torch.autograd.Function):
    """How far apart the predictions p and q of logits [N, V] at pairs [2, K] of places are, in nats, [K]: half the sum
    of KL(p, q) and KL(q, p) (after R-Drop, arXiv 2106.14448, which compares two passes with other dropout).

    Written J = sum((p - q) d) / 2 with d = log p - log q, its gradient is (p (d - sum(p d)) + p - q) / 2 for the logits
    of p, and for those of q the same with both exchanged.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        size = pairs.shape[1]
        found = torch.empty(size, dtype=wide, device=logits.device)
        slopes = logits.new_empty(2, size, logits.shape[1])
        rows = _ROWS if logits.device.type == "cpu" else size
        for start in range(0, size, max(1, rows)):
            here = slice(start, start + rows)
            first, second = (torch.log_softmax(logits[part[here]].to(wide), dim=-1) for part in pairs)
            apart = first - second
            p, q = first.exp_(), second.exp_()
            found[here] = 0.5 * ((p - q) * apart).sum(dim=-1)
            slopes[0, here] = 0.5 * (p * (apart - (p * apart).sum(dim=-1, keepdim=True)) + p - q)
            slopes[1, here] = 0.5 * (q * ((q * apart).sum(dim=-1, keepdim=True) - apart) + q - p)
        ctx.save_for_backward(slopes, pairs)
        ctx.size = len(logits)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        slopes, pairs = ctx.saved_tensors
        scaled = slopes * gradient[None, :, None].to(slopes.dtype)
        whole = slopes.new_zeros(ctx.size, slopes.shape[2])
        for part, slope in zip(pairs, scaled, strict=True):  # a place is once at most in each of the two
            whole.index_add_(0, part, slope)
        return whole, None


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood in nats of each supervised token, [N], fp32. Where rows are answered after each of R
    readings and the plan wants these to agree, what an answer after the first adds is told with it: the mean over all N
    is then that of the likelihoods plus `consistency` times the mean distance of neighbours."""
    if not batch.passes:
        logits = kind_of(model).logits(model, batch)
        plain: torch.Tensor = _Likelihood.apply(logits, batch.targets)
        return plain
    logits = model(passes=batch.passes, positions=batch.positions)[0]  # [N, V], by a reading plan of its own
    losses: torch.Tensor = _Likelihood.apply(logits, batch.targets)
    pairs, weight = batch.pairs, model.plan.consistency
    if weight and pairs is not None and pairs.shape[1]:
        share = len(losses) / pairs.shape[1]  # R / (R - 1)
        losses = losses.index_add(0, pairs[1], weight * share * _Apart.apply(logits, pairs))
    return losses


@torch.no_grad()
def row_losses(
    model: Any,
    rows: Sequence[Rendered],
    *,
    pad_id: int,
    batch_tokens: int,
    autocast: Any = None,
    group: Processes = ALONE,
) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, supervised tokens) of each row, in the order given; a `Reading` reads
    each row by its plan, as often as its `strokes` say. Several processes deal the batches of one among themselves,
    so that the figures do not depend on their number."""
    layout = Layout.of(model, pad_id)
    lengths = [layout.length(row) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    result: dict[int, tuple[float, int]] = {}
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for numbers in group.mine(by_length(lengths, order, batch_tokens, None)):
            batch = layout.batch([rows[number] for number in numbers], numbers).to(device)
            with autocast() if autocast else torch.no_grad():
                losses = token_losses(model, batch)
            sums = torch.zeros(len(numbers), dtype=torch.float64, device=device)
            sums = sums.index_add_(0, batch.owners, losses.double())
            counts = torch.bincount(batch.owners, minlength=len(numbers))
            for place, number in enumerate(numbers):
                result[number] = (float(sums[place]), int(counts[place]))
    finally:
        model.train(was_training)
    everywhere = {number: found for part in group.exchange(list(result.items())) for number, found in part}
    return [everywhere[number] for number in range(len(rows))]


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """Nats per supervised token over all rows."""
    tokens = sum(count for _, count in losses)
    return sum(total for total, _ in losses) / tokens if tokens else float("nan")


__all__ = ["logits_at", "mean_loss", "row_losses", "token_losses"]
