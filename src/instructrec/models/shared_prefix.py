"""Rows of a micro-batch that begin alike (a system message, an instruction that all rows of a task share): each
beginning goes through the backbone once, and its rows attend to its keys and values.

Under a causal mask nothing behind a token changes what is computed for it, so loss and gradient are those of the rows
by themselves; only the order of sums differs. Everything but attention works token by token, and is given the batch as
one long row. Dropout would be the same for all rows that share, so there is no sharing with it.

B rows, L tokens of the longest, S shared beginnings of P tokens each, W tokens behind the beginning (L - P),
T tokens of the batch (S*P + B*W), N supervised positions, X heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

# Tokens that have to be saved, as a share of all: below, two attentions in place of one cost more than they save.
WORTH = 0.1


@dataclass(frozen=True)
class SharedPrefix:
    """How the T tokens of a batch hang together; travels as a keyword argument down to every attention layer.

    count: S.  length: P.  whose [B]: the beginning of each row.  windows: those that layers told of, None for a layer
    that sees everything.
    """

    count: int
    length: int
    whose: torch.Tensor
    windows: set[int | None] = field(default_factory=set, compare=False)

    def to(self, device: torch.device) -> SharedPrefix:
        """The same on another device."""
        return replace(self, whose=self.whose.to(device))

    def split(self, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Beginnings [S, X, P, E] and what follows them [B, X, W, E], of [1, X, T, E]."""
        heads, width = part.shape[1], part.shape[3]
        cut = self.count * self.length
        first = part[0, :, :cut].reshape(heads, self.count, self.length, width)
        rest = part[0, :, cut:].reshape(heads, len(self.whose), -1, width)
        return first.transpose(0, 1), rest.transpose(0, 1)

    def behind(self, first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Keys or values [B, X, P + W, E] of whole rows."""
        ahead = first.expand(len(rest), -1, -1, -1) if self.count == 1 else picked(first, self.whose)
        return torch.cat([ahead, rest], dim=2)

    @property
    def saved(self) -> int:
        """Tokens of rows that are not in the batch a second time, (B - S)*P."""
        return (len(self.whose) - self.count) * self.length


def picked(source: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """source[places], [N, ..], also where a place comes several times.

    On a processor the gradient of an index adds up in an order that changes from call to call, with several threads; on
    a GPU that of `index_select` does.
    """
    return source.index_select(0, places) if source.device.type == "cpu" else source[places]


def seen(tokens: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """The mask [1, 1, T, K], bool, of `tokens` queries that are the last of so many keys."""
    query = torch.arange(keys - tokens, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None]
    found = key <= query
    if window is not None:
        found &= query - key < window
    return found[None, None]


def common(rows: Sequence[list[int]]) -> tuple[int, NDArray[np.int64]]:
    """P, and the beginning of each row [B], numbered from 0, where the fewest tokens are left; P is 0 where it is not
    worth it. Each row keeps a token at least."""
    count, nothing = len(rows), (0, np.zeros(len(rows), dtype=np.int64))
    most, longest = min(map(len, rows), default=0) - 1, max(map(len, rows), default=0)
    if count < 2 or most < 1:
        return nothing
    order = sorted(range(count), key=lambda place: rows[place][:most])
    ordered = np.array([rows[place][:most] for place in order], dtype=np.int64).reshape(count, most)
    differ = ordered[1:] != ordered[:-1]
    alike = np.where(differ.any(axis=1), differ.argmax(axis=1), most)  # tokens that each has in common with the next
    # With longer beginnings fewer rows share one. Between two lengths at which rows part, longer is better.
    lengths = np.unique(alike)
    beginnings = 1 + (alike[None] < lengths[:, None]).sum(axis=1)
    left = beginnings * lengths + count * (longest - lengths)
    best = int(left.argmin())
    if left[best] > (1 - WORTH) * count * longest:
        return nothing
    whose = np.zeros(count, dtype=np.int64)
    whose[order] = np.concatenate([[0], np.cumsum(alike < lengths[best])])
    return int(lengths[best]), whose


def lay(
    rows: Sequence[Sequence[int]], flags: Sequence[Sequence[bool]], length: int, whose: NDArray[np.int64], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """ids [T] and their positions in their rows [T]; of the supervised tokens, by row: where in T each is predicted,
    the token, and its row [N].

    flags: what is supervised. A token of a beginning that several rows are to learn counts once for each.
    """
    count, width = int(whose.max()) + 1, max(len(row) for row in rows) - length
    ids = np.full(count * length + len(rows) * width, pad_id, dtype=np.int64)
    own = np.tile(np.arange(length), count)
    positions = np.concatenate([own, np.tile(np.arange(length, length + width), len(rows))])
    places, targets, owners = [], [], []
    for number, (row, flag) in enumerate(zip(rows, flags, strict=True)):
        head, rest = int(whose[number]) * length, count * length + number * width
        ids[head : head + length] = row[:length]
        ids[rest : rest + len(row) - length] = row[length:]
        wanted = np.flatnonzero(np.asarray(flag, dtype=bool)[1:])  # a row's first token is never a target
        places.append(np.where(wanted < length, head + wanted, rest + wanted - length))
        targets.append(np.asarray(row, dtype=np.int64)[wanted + 1])
        owners.append(np.full(len(wanted), number))
    return ids, positions, np.concatenate(places), np.concatenate(targets), np.concatenate(owners)


__all__ = ["WORTH", "SharedPrefix", "common", "lay", "picked", "seen"]
