"""Which rows go together, and how they are laid out for the model that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.kinds import Batch, kind_of
from ..models.kinds.decoder import collate
from ..models.reading import Reading, ReadingPlan, cut, lay, repeat
from ..prompts.template import Rendered

_POOL = 32  # micro-batches whose rows are sorted by length together: little padding, still well shuffled


@dataclass(frozen=True)
class Layout:
    """How rows become batches: as they are, or by a reading plan with so many strokes.

    deep: answer after each stroke.  model: what reads them, whose kind decides; None is a decoder.
    """

    pad_id: int
    plan: ReadingPlan = ReadingPlan()
    strokes: int = 1
    deep: bool = False
    model: Any = None

    @classmethod
    def of(cls, model: Any, pad_id: int) -> Layout:
        """For asking `model` what it makes of a row's answer."""
        plan, strokes = (model.plan, model.strokes) if isinstance(model, Reading) else (ReadingPlan(), 1)
        return cls(pad_id, plan, strokes, model=model)

    def length(self, row: Rendered) -> int:
        """Tokens that go through the backbone for this row."""
        end = cut(row)
        return self.plan.tokens(end, len(row.ids) - end, self.strokes, self.deep)

    def batch(self, rows: Sequence[Rendered], numbers: Sequence[int] = ()) -> Batch:
        """Rows as one batch; a plan that is one pass over repeated tokens is fed as just that."""
        answers_once = self.strokes == 1 or not self.deep
        if answers_once and self.plan.one_pass(self.strokes):
            again = rows if self.strokes == 1 else [repeat(row, self.strokes) for row in rows]
            return kind_of(self.model).collate(self.model, again, self.pad_id, numbers)
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
    lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    tokens: int,
    rows: int | None,
    keys: Sequence[int] | None = None,
    chosen: Sequence[int] | None = None,
) -> list[list[int]]:
    """Micro-batches of one epoch, each row once: rows shuffled, sorted by length within pools, batches shuffled.

    keys: what rows are sorted by where it is not `lengths`.  chosen: the rows of this epoch where it is not each one
    once; a row may be there several times.
    A pure function of its arguments, so that a resumed run meets the same rows in the same order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths) if chosen is None else np.asarray(chosen, dtype=np.int64))
    sizes, ranks = np.asarray(lengths), np.asarray(lengths if keys is None else keys)
    per_batch = max(1, int(tokens / max(1.0, float(sizes.mean()))) if len(sizes) else 1)
    pool = _POOL * min(per_batch, rows or per_batch)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(ranks[part], kind="stable")]
        batches += by_length(lengths, part.tolist(), tokens, rows)
    return [batches[place] for place in generator.permutation(len(batches))]


def padding_share(sides: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> float:
    """Share of all batch positions that hold no token of any row. sides: what each stack reads of each row."""
    total = sum(len(batch) * max(side) for batch in batches for side in zip(*(sides[n] for n in batch), strict=True))
    used = sum(sum(sides[number]) for batch in batches for number in batch)
    return 1 - used / total if total else 0.0


__all__ = ["Batch", "Layout", "by_length", "collate", "padding_share", "plan_epoch"]
