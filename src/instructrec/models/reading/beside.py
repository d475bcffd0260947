"""Tokens tried behind prompts that were read, several continuations at once, the prompts' memory staying as it is.

What is tried may branch: a token sees its prompt and those tokens before it that it goes on from. So all labels of a
set stand behind one copy of the prompt, and a beginning that several share is read once.

R rows, K tokens behind each, W tokens of the longest prompt, G key/value heads, E width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import InputError
from ..kinds.batch import OWN_MASK
from ..kinds.decoder import Cached
from ..products import Reach, reach
from .attention import NAME


class Beside:
    """What the tokens of one call see: travels as a keyword argument down to every attention layer.

    seen [1 or R, K, K] bool: which of the tokens each sees.  depth [1 or R, K]: their places behind the prompt, from 0.
    """

    def __init__(self, reader: Cached, rows: torch.Tensor, depth: torch.Tensor, seen: torch.Tensor) -> None:
        self.layers, self.rows = reader.layers, rows
        self.valid = reader.mask[rows].bool()  # [R, W]
        self.before = (reader.mask[rows].cumsum(1) - 1).clamp(min=0)
        self.position = reader.positions[rows] + depth  # [R, K]
        self.seen = seen
        self.read: set[int] = set()
        self._masks: dict[tuple[int | None, torch.dtype, int], tuple[torch.Tensor, Reach | None]] = {}
        self._kept = 0

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, G, W + K, E] that this layer attends to, from its own [R, G, K, E]."""
        self.read.add(layer)
        keys, values = (part[self.rows] for part in (self.layers[layer].keys, self.layers[layer].values))
        self._kept = keys.shape[2]  # a layer with a window keeps its last ones only
        return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)

    def mask(self, window: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, Reach | None]:
        """What is added to the scores, [R, 1, K, W + K], and how far its blocks reach."""
        known = (window, dtype, self._kept)
        if known not in self._masks:
            first = self.valid.shape[1] - self._kept
            own = self.seen.expand(len(self.rows), -1, -1)
            ahead = self.valid[:, None, first:].expand(-1, own.shape[1], -1)
            if window is not None:
                ahead = ahead & (self.position[:, :, None] - self.before[:, None, first:] < window)
                own = own & (self.position[:, :, None] - self.position[:, None, :] < window)
            seen = torch.cat([ahead, own], dim=2)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            mask = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
            self._masks[known] = mask, reach(seen) if mask.device.type == "cpu" else None
        return self._masks[known]


def beside(
    reader: Any, rows: torch.Tensor, ids: torch.Tensor, depth: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor | None:
    """Logits [R, K, V] after each of the tokens `ids` [R, K] behind these rows [R] of a reader, which stays as it is.

    depth, seen: as `Beside` takes them; a token sees itself.  None where the backbone does not let its attention be
    told who sees whom: then the reader has to go token by token.
    """
    if not isinstance(reader, Cached) or reader.model.config._attn_implementation != NAME:
        return None
    layers = reader.layers
    if not layers or not all(getattr(layer, "is_initialized", False) and layer.keys.dim() == 4 for layer in layers):
        return None
    sight = Beside(reader, rows, depth, seen)
    try:
        logits: torch.Tensor = reader.model(
            input_ids=ids,
            position_ids=sight.position,
            attention_mask=OWN_MASK.to(ids.device),
            use_cache=False,
            reading=sight,
        ).logits
    except InputError:  # its attention needs what `attend` refuses to leave out
        return None
    # A family that does not hand the keyword down would have read the tokens without their prompt.
    return logits if sight.read == set(range(len(layers))) else None


__all__ = ["Beside", "beside"]
