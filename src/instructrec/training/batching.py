"""Which rows go together, and rows made into tensors.

B rows of a micro-batch, T tokens of its longest row, N supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..models.reading import Pass, Reading, ReadingPlan, cut, lay, repeat
from ..prompts.template import Rendered

_POOL = 32  # micro-batches whose rows are sorted by length together: little padding, still well shuffled


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    ids [B, T] token ids, filled up on the right.  mask [B, T] bool, or None when nothing was filled up.
    positions [N]: index into the B*T tokens from which a supervised token is predicted.  targets [N]: that token.
    owners [N]: place in the batch of the row that it belongs to.  rows: numbers of the rows.
    passes: where a reading plan wants several, with ids and mask of the last, to which the positions belong.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    rows: tuple[int, ...]
    passes: tuple[Pass, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "targets", "owners")}
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, **moved, mask=mask, passes=tuple(one.to(device) for one in self.passes))


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
        torch.from_numpy(positions // width),
        tuple(numbers),
    )


@dataclass(frozen=True)
class Layout:
    """How rows become batches: as they are, or by a reading plan with so many strokes. deep: answer after each."""

    pad_id: int
    plan: ReadingPlan = ReadingPlan()
    strokes: int = 1
    deep: bool = False

    @classmethod
    def of(cls, model: Any, pad_id: int) -> Layout:
        """For asking `model` what it makes of a row's answer."""
        return cls(pad_id, model.plan, model.strokes) if isinstance(model, Reading) else cls(pad_id)

    def length(self, row: Rendered) -> int:
        """Tokens that go through the backbone for this row."""
        end = cut(row)
        return self.plan.tokens(end, len(row.ids) - end, self.strokes, self.deep)

    def batch(self, rows: Sequence[Rendered], numbers: Sequence[int] = ()) -> Batch:
        """Rows as one batch; a plan that is one causal pass over repeated tokens is fed as just that."""
        answers_once = self.strokes == 1 or not self.deep
        if answers_once and self.plan.one_pass(self.strokes):
            again = rows if self.strokes == 1 else [repeat(row, self.strokes) for row in rows]
            return collate(again, self.pad_id, numbers)
        laid = lay(rows, self.plan, self.strokes, pad_id=self.pad_id, deep=self.deep)
        last = laid.passes[-1]
        parts = (last.ids, last.tags.valid, laid.positions, laid.targets, laid.owners)
        return Batch(*parts, tuple(numbers), laid.passes)


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


def plan_epoch(
    lengths: Sequence[int], *, seed: int, epoch: int, tokens: int, rows: int | None, keys: Sequence[int] | None = None
) -> list[list[int]]:
    """Micro-batches of one epoch, each row once: rows shuffled, sorted by length within pools, batches shuffled.

    keys: what rows are sorted by where it is not `lengths`.
    A pure function of its arguments, so that a resumed run meets the same rows in the same order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    sizes, ranks = np.asarray(lengths), np.asarray(lengths if keys is None else keys)
    per_batch = max(1, int(tokens / max(1.0, float(sizes.mean()))) if len(sizes) else 1)
    pool = _POOL * min(per_batch, rows or per_batch)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(ranks[part], kind="stable")]
        batches += by_length(lengths, part.tolist(), tokens, rows)
    return [batches[place] for place in generator.permutation(len(batches))]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of all batch positions that hold no token of any row."""
    total = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    used = sum(lengths[number] for batch in batches for number in batch)
    return 1 - used / total if total else 0.0
