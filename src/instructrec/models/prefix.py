"""Keys and values that stand before every row, as the attention function takes them.

B rows, T tokens, P positions of the prefix, K keys, G key/value heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .products import Reach

Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Prefix:
    """Travels as a keyword argument down to every attention layer. layers: keys and values [1, G, P, E] of each."""

    layers: Layers

    @property
    def length(self) -> int:
        """P."""
        return self.layers[0][0].shape[2]

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, G, P + K, E] that this layer attends to, from [B, G, K, E] without the prefix."""
        ahead = [part.to(key.dtype).expand(len(key), -1, -1, -1) for part in self.layers[layer]]
        return torch.cat([ahead[0], key], dim=2), torch.cat([ahead[1], value], dim=2)

    def widen(self, mask: torch.Tensor | None, tokens: int, keys: int, device: torch.device) -> torch.Tensor | None:
        """The mask [B or 1, 1, T, K] with P columns more in front that every query sees, also through a window.

        keys: K. A causal mask that was left away (None) is made, unless a single query sees everything: kernels take
        the first query for the first key's, and the library drops the keys that are left over.
        """
        if mask is None:
            if tokens == 1:
                return None
            seen = torch.ones(tokens, self.length + keys, dtype=torch.bool, device=device)
            return seen.tril(self.length + keys - tokens)[None, None]
        shape = (*mask.shape[:-1], self.length)
        ahead = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
        return torch.cat([ahead, mask], dim=-1)

    def shift(self, blocks: Reach | None) -> Reach | None:
        """How far blocks of queries reach, with the prefix, which all of them see."""
        return None if blocks is None else tuple((0, last + self.length) for _, last in blocks)


__all__ = ["Layers", "Prefix"]
