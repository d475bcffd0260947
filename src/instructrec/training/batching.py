"""Which rows go together, and rows made into tensors.

B rows of a micro-batch, T tokens of its longest row, N supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..prompts.template import Rendered

_POOL = 32  # micro-batches whose rows are sorted by length together: little padding, still well shuffled


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    ids [B, T] token ids, filled up on the right.  mask [B, T] bool, or None when nothing was filled up.
    positions [N]: index into the B*T tokens from which a supervised token is predicted.  targets [N]: that token.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    rows: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        moved = (self.ids.to(device), mask, self.positions.to(device), self.targets.to(device))
        return Batch(*moved, rows=self.rows)


def collate(rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch:
    """Rows of unequal length as one batch. A row's first token is never a target: nothing comes before it."""
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    supervised = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        mask[number, : len(row.ids)] = True
        supervised[number, : len(row.ids)] = row.supervised
    supervised[:, 0] = False
    positions = np.flatnonzero(np.roll(supervised, -1, axis=1))
    return Batch(
        torch.from_numpy(ids),
        None if mask.all() else torch.from_numpy(mask),
        torch.from_numpy(positions),
        torch.from_numpy(ids.reshape(-1)[positions + 1]),
        tuple(numbers),
    )


def by_length(lengths: Sequence[int], order: Sequence[int], tokens: int, rows: int | None) -> list[list[int]]:
    """Cut `order` into micro-batches of at most `tokens` tokens, padding included, and at most `rows` rows.

    A row longer than `tokens` gets a batch of its own.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for number in order:
        longest_then = max(longest, lengths[number])
        if batch and (longest_then * (len(batch) + 1) > tokens or len(batch) == rows):
            batches.append(batch)
            batch, longest_then = [], lengths[number]
        batch.append(number)
        longest = longest_then
    return [*batches, batch] if batch else batches


def plan_epoch(lengths: Sequence[int], *, seed: int, epoch: int, tokens: int, rows: int | None) -> list[list[int]]:
    """Micro-batches of one epoch, each row once: rows shuffled, sorted by length within pools, batches shuffled.

    A pure function of its arguments, so that a resumed run meets the same rows in the same order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    sizes = np.asarray(lengths)
    per_batch = max(1, int(tokens / max(1.0, float(sizes.mean()))) if len(sizes) else 1)
    pool = _POOL * min(per_batch, rows or per_batch)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(sizes[part], kind="stable")]
        batches += by_length(lengths, part.tolist(), tokens, rows)
    return [batches[place] for place in generator.permutation(len(batches))]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of all batch positions that hold no token of any row."""
    total = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    used = sum(lengths[number] for batch in batches for number in batch)
    return 1 - used / total if total else 0.0
