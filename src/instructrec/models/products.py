"""Attention written out as two products and a softmax, in blocks of queries that look at no more keys than they see.

On a processor this takes half the time of the fused kernel, forward and backward, from 200 tokens on (bench/cost.py):
the kernel's small tiles keep the matrix units waiting, and with a mask it works through what the mask hides.

B rows, T tokens, K keys, H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

BLOCK = 256  # queries that are taken together
# Scores of a head and row up to which they are kept for the backward pass; above, they are computed again there. The
# limit is a causal row of 1,900 tokens, also one of 950 read twice: 38 MB a layer in bf16 with nine heads.
_KEPT = 1 << 21

Reach = tuple[tuple[int, int], ...]  # for each block of queries: the first key that one of them sees, and the last + 1


def reach(seen: torch.Tensor) -> Reach:
    """What the blocks of a mask [.., T, K] bool have to look at, over all of its rows."""
    seen = seen.reshape(-1, *seen.shape[-2:]).any(dim=0)
    found = []
    for block in seen.split(BLOCK):
        columns = block.any(dim=0).nonzero()
        found.append((int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1))
    return tuple(found)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    blocks: Reach | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(query key' * scaling + mask) value, [B, T, H, E], of query [B, H, T, E], key and value [B, G, K, E].

    mask: [B or 1, 1, T, K], bool (True: seen) or added to the scores; None: the last query sees every key, and each
    before it one less.  blocks: what `reach` says of the mask, found out here when not given.
    A query that sees nothing gives the mean of some values: of no use, but finite.
    """
    tokens, keys = query.shape[2], key.shape[2]
    if blocks is None:
        blocks = _causal_reach(tokens, keys) if mask is None else reach(_seen(mask))
    sizes = [min(BLOCK, tokens - place * BLOCK) * (last - first) for place, (first, last) in enumerate(blocks)]
    again = torch.is_grad_enabled() and sum(sizes) > _KEPT
    parts = []
    for place, (first, last) in enumerate(blocks):
        here = slice(place * BLOCK, min((place + 1) * BLOCK, tokens))
        if mask is None:
            part = _lower(here, keys - tokens, first, last, query)
        else:
            part = _added(mask[:, :, here, first:last], query.dtype)
        given = (query[:, :, here], key[:, :, first:last], value[:, :, first:last], part, scaling, dropout)
        if again:
            parts.append(checkpoint(_block, *given, use_reentrant=False))
        else:
            parts.append(_block(*given))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _seen(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def _causal_reach(tokens: int, keys: int) -> Reach:
    ends = [min(start + BLOCK, tokens) for start in range(0, tokens, BLOCK)]
    return tuple((0, keys - tokens + end) for end in ends)


def _lower(here: slice, ahead: int, first: int, last: int, query: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(here.start, here.stop, device=query.device)[:, None] + ahead
    return _added(torch.arange(first, last, device=query.device)[None, :] <= rows, query.dtype)


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as one that is added to the scores: 0 or a very small number."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    rows, heads, tokens, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    factor = width**-0.5 if scaling is None else scaling
    packed = (query * factor).reshape(rows, groups, -1, width)  # heads that share a key stand below each other
    scores = (packed @ key.transpose(2, 3)).view(rows, heads, tokens, keys) + mask
    shares = torch.softmax(scores, dim=-1)
    if dropout:
        shares = torch.nn.functional.dropout(shares, dropout)
    return (shares.view(rows, groups, -1, keys) @ value).view(rows, heads, tokens, -1).transpose(1, 2)


__all__ = ["BLOCK", "Reach", "attention", "reach"]
