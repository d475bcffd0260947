"""Which rows go together, and how they are laid out for the model that reads them.

N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.kinds import Batch, kind_of
from ..models.kinds.decoder import collate, sharing
from ..models.reading import Reading, ReadingPlan, cut, cuts, lay, repeat
from ..prompts.shelf import column
from ..prompts.template import Rendered
from .dealt import Batches, greedy
from .prefixes import may_share

_POOL = 32  # micro-batches whose rows are sorted by length together: little padding, still well shuffled


@dataclass(frozen=True)
class Layout:
    """How rows become batches: as they are, or by a reading plan with so many strokes.

    deep: answer after each stroke.  model: what reads them, whose kind decides; None is a decoder.
    share: what rows of a batch have in common at their beginnings is in it once (`may_share` knows whether it may).
    """

    pad_id: int
    plan: ReadingPlan = ReadingPlan()
    strokes: int = 1
    deep: bool = False
    model: Any = None
    share: bool = False

    @classmethod
    def of(cls, model: Any, pad_id: int) -> Layout:
        """For asking `model`, which is not trained meanwhile, what it makes of a row's answer."""
        plan, strokes = (model.plan, model.strokes) if isinstance(model, Reading) else (ReadingPlan(), 1)
        return cls(pad_id, plan, strokes, model=model, share=may_share(model, training=False))

    def lengths(self, rows: Sequence[Rendered]) -> NDArray[Any]:
        """The same of many rows."""
        ends = cuts(rows)
        found: NDArray[Any] = self.plan.tokens(ends, column(rows, "size") - ends, self.strokes, self.deep)
        return found

    def length(self, row: Rendered) -> int:
        """Tokens that go through the backbone for this row."""
        end = cut(row)
        return self.plan.tokens(end, len(row.ids) - end, self.strokes, self.deep)

    def batch(self, rows: Sequence[Rendered], numbers: Sequence[int] = ()) -> Batch:
        """Rows as one batch; a plan that is one pass over repeated tokens is fed as just that."""
        if self.plan.as_rows(self.strokes, self.deep):
            again = rows if self.strokes == 1 else [repeat(row, self.strokes) for row in rows]
            shared = sharing(again, self.pad_id, numbers) if self.share else None
            return shared or kind_of(self.model).collate(self.model, again, self.pad_id, numbers)
        laid = lay(rows, self.plan, self.strokes, pad_id=self.pad_id, deep=self.deep, share=self.share)
        last = laid.passes[-1]
        parts = (last.ids, last.tags.valid, laid.positions, laid.targets, laid.owners)
        return Batch(*parts, tuple(numbers), laid.passes, pairs=laid.pairs)


def by_length(
    lengths: Sequence[int] | NDArray[Any], order: Sequence[int], tokens: int, rows: int | None
) -> list[list[int]]:
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
    lengths: Sequence[int] | NDArray[Any],
    *,
    seed: int,
    epoch: int,
    tokens: int,
    rows: int | None,
    keys: Sequence[int] | NDArray[Any] | None = None,
    chosen: Sequence[int] | NDArray[Any] | None = None,
) -> Batches:
    """Micro-batches of one epoch, each row once: rows shuffled, sorted by length within pools, batches shuffled.

    keys: what rows are sorted by where it is not `lengths`.  chosen: the rows of this epoch where it is not each one
    once; a row may be there several times.
    A pure function of its arguments, so that a resumed run meets the same rows in the same order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths) if chosen is None else np.asarray(chosen, dtype=np.int64))
    order = order.astype(np.int32, copy=False)
    sizes, ranks = np.asarray(lengths), np.asarray(lengths if keys is None else keys)
    per_batch = max(1, int(tokens / max(1.0, float(sizes.mean()))) if len(sizes) else 1)
    pool = _POOL * min(per_batch, rows or per_batch)
    whole = len(order) // pool * pool
    parts, begins = [], []
    for part in (order[:whole].reshape(-1, pool), order[whole:].reshape(1, -1)):
        if part.size:
            part = np.take_along_axis(part, np.argsort(ranks[part], axis=1, kind="stable"), axis=1)
            parts.append(part.ravel())
            begins.append(greedy(sizes[part], tokens, rows).ravel())
    if not parts:
        return Batches(order, np.zeros(0, dtype=np.int64))
    numbers, starts = np.concatenate(parts), np.flatnonzero(np.concatenate(begins))
    return _shuffled(Batches(numbers, np.append(starts[1:], len(numbers))), generator)


def _shuffled(batches: Batches, generator: np.random.Generator) -> Batches:
    order = generator.permutation(len(batches))
    sizes, starts = batches.sizes[order], batches.starts[order]
    ends = np.cumsum(sizes)
    # Place p of the result comes from start of its batch + p - where that batch now begins.
    source = np.repeat(starts - (ends - sizes), sizes) + np.arange(len(batches.numbers))
    return Batches(batches.numbers[source], ends)


def padding_share(sides: Sequence[NDArray[Any]], batches: Sequence[Sequence[int]]) -> float:
    """Share of all batch positions that hold no token of any row. sides: what each stack reads of each row, [N]."""
    dealt = Batches.of(batches)
    total = sum(int((dealt.most(side) * dealt.sizes).sum()) for side in sides)
    used = sum(int(dealt.total(side).sum()) for side in sides)
    return 1 - used / total if total else 0.0


__all__ = ["Batch", "Layout", "by_length", "collate", "padding_share", "plan_epoch"]
