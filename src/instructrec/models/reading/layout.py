"""Rows laid out for the passes of a plan: which tokens go through the backbone together, and what each of them is.

Units (a stroke over the instruction, or an answer) that read with the same weights go together in one pass; what a
token may see is told by its tags alone (`attention.visible`), so units stand side by side in any order.

B rows, T tokens of a pass, N tokens of an instruction, N' supervised positions of a batch; where instructions begin
alike, S beginnings of P tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...prompts.shelf import column
from ...prompts.template import Rendered
from ..shared_prefix import WORTH, common
from .attention import Tags
from .plan import ReadingPlan


@dataclass(frozen=True)
class Pass:
    """One run through the backbone: ids [B, T], filled up on the right, and whose weights read them.

    whose [B]: where ids are beginnings [S, P] that rows share, the one of each row.
    """

    ids: torch.Tensor
    tags: Tags
    weights: str
    whose: torch.Tensor | None = None

    def to(self, device: torch.device) -> Pass:
        """The same on another device."""
        whose = None if self.whose is None else self.whose.to(device)
        return replace(self, ids=self.ids.to(device), tags=self.tags.to(device), whose=whose)

    @property
    def saved(self) -> int:
        """Tokens of rows that are in this pass for others too, (B - S)*P."""
        return 0 if self.whose is None else (len(self.whose) - len(self.ids)) * self.ids.shape[1]


@dataclass(frozen=True)
class Laid:
    """Rows as passes; the last of them holds the answers.

    ends [B]: index into the last pass's B*T tokens of each row's last token.
    positions [N']: index of the tokens from which a supervised one is predicted.  targets [N'].
    owners [N']: the row that each of them belongs to.
    pairs [2, K]: places in positions of the same token of an answer, after a stroke and after the next; K is 0 where
    rows are answered once.
    """

    passes: tuple[Pass, ...]
    ends: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    pairs: torch.Tensor


@dataclass(frozen=True)
class _Unit:
    stroke: int
    answer: bool


def cut(row: Rendered) -> int:
    """Tokens of x. The answer's first token is predicted from a: where a template has no header, x lends its last."""
    return max(0, min(row.instruction_end, row.prompt_end - 1))


def cuts(rows: Sequence[Rendered]) -> NDArray[Any]:
    """The same of many rows, [N]."""
    return np.maximum(0, np.minimum(column(rows, "instruction_end"), column(rows, "prompt_end") - 1)).astype(np.int64)


def repeat(row: Rendered, strokes: int) -> Rendered:
    """[x; ..; x; a] as one row: exact for plans whose `sequence` is true. Only the answer is supervised."""
    end = cut(row)
    ahead = end * (strokes - 1)
    supervised = [False] * (ahead + end) + row.supervised[end:]
    return replace(
        row,
        ids=row.ids[:end] * (strokes - 1) + row.ids,
        supervised=supervised,
        instruction_end=row.instruction_end + ahead,
        prompt_end=row.prompt_end + ahead,
    )


def passes_of(plan: ReadingPlan, strokes: int, deep: bool) -> list[tuple[str, list[_Unit]]]:
    """Units of each pass with the weights that read them; the last pass reads with the tuned weights and answers."""
    answers = [_Unit(stroke, True) for stroke in (range(1, strokes + 1) if deep else [strokes])]
    readings = [(plan.weights(stroke, strokes), _Unit(stroke, False)) for stroke in range(1, strokes + 1)]
    if plan.mix == "gated" and strokes > 1:  # the average exists only when both are read
        return [*((weights, [unit]) for weights, unit in readings), ("", answers)]
    passes: list[tuple[str, list[_Unit]]] = []
    for weights, unit in readings:
        if passes and passes[-1][0] == weights:
            passes[-1][1].append(unit)
        else:
            passes.append((weights, [unit]))
    if passes[-1][0] != "":
        passes.append(("", []))
    passes[-1][1].extend(answers)
    return passes


def lay(
    rows: Sequence[Rendered], plan: ReadingPlan, strokes: int, *, pad_id: int, deep: bool = False, share: bool = False
) -> Laid:
    """Rows as the passes of `plan` with `strokes` readings. deep: an answer after every stroke.  share: beginnings that
    instructions have in common are read once, in a pass before the others, as far as stroke 1 goes: from stroke 2 on a
    token sees what differs. Not with mix=gated, which averages strokes token by token.

    Only what is supervised behind x counts; an earlier answer inside x would see itself in an earlier stroke.
    """
    cuts = [cut(row) for row in rows]
    units_of = passes_of(plan, strokes, deep)
    passes = []
    begun = _beginnings(rows, cuts, plan, strokes, deep) if share and plan.mix == "concat" else None
    if begun:
        passes.append(_beginning(rows, *begun, plan, plan.weights(1, strokes)))
    known = begun[0] if begun else 0
    for weights, units in units_of:
        passes.append(_pass(rows, cuts, plan, weights, units, pad_id, known))
    width = passes[-1].ids.shape[1]
    ends: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    pairs: list[tuple[int, int]] = []
    last = units_of[-1][1]
    for place, (row, end) in enumerate(zip(rows, cuts, strict=True)):
        start, before = 0, range(0)
        for unit in last:
            if unit.answer:
                first = len(positions)
                for offset in range(1, len(row.ids) - end):
                    if row.supervised[end + offset]:
                        positions.append(place * width + start + offset - 1)
                        targets.append(row.ids[end + offset])
                        owners.append(place)
                own = range(first, len(positions))
                pairs += zip(before, own, strict=False)  # before the first there is none
                before = own
            start += _size(row, end, unit, known)
        ends.append(place * width + start - 1)
    apart = [[pair[side] for pair in pairs] for side in (0, 1)]
    return Laid(
        tuple(passes), *(torch.tensor(part, dtype=torch.long) for part in (ends, positions, targets, owners, apart))
    )


def _beginnings(
    rows: Sequence[Rendered], cuts: Sequence[int], plan: ReadingPlan, strokes: int, deep: bool
) -> tuple[int, NDArray[Any]] | None:
    """P, and the beginning of each row [B]; None where it is not worth a pass of its own."""
    length, whose = common([row.ids[:end] for row, end in zip(rows, cuts, strict=True)])
    work = 0.5 if plan.weights(1, strokes) == "off" else 1.0  # of a token of stroke 1, without a gradient
    total = sum(plan.tokens(end, len(row.ids) - end, strokes, deep) for row, end in zip(rows, cuts, strict=True))
    total -= (1 - work) * sum(cuts)
    saved = work * length * (len(rows) - int(whose.max()) - 1) if length else 0
    return (length, whose) if saved and saved >= WORTH * total else None


def _beginning(rows: Sequence[Rendered], length: int, whose: NDArray[Any], plan: ReadingPlan, weights: str) -> Pass:
    _, firsts = np.unique(whose, return_index=True)
    ids = torch.tensor([rows[first].ids[:length] for first in firsts.tolist()])
    yes = torch.ones_like(ids, dtype=torch.bool)
    position = torch.arange(plan.slots, plan.slots + length).expand_as(ids)
    return Pass(ids, Tags(position, torch.ones_like(ids), ~yes, yes), weights, torch.from_numpy(whose))


def _size(row: Rendered, end: int, unit: _Unit, known: int) -> int:
    """Tokens of a unit; known: of stroke 1, how many are read already."""
    if unit.answer:
        return len(row.ids) - end
    return end - known if unit.stroke == 1 else end


def _pass(
    rows: Sequence[Rendered],
    cuts: Sequence[int],
    plan: ReadingPlan,
    weights: str,
    units: Sequence[_Unit],
    pad_id: int,
    known: int,
) -> Pass:
    lengths = [sum(_size(row, end, unit, known) for unit in units) for row, end in zip(rows, cuts, strict=True)]
    shape = (len(rows), max(1, *lengths))
    ids = np.full(shape, pad_id, dtype=np.int64)
    position, stroke = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    answer, valid = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for place, (row, end) in enumerate(zip(rows, cuts, strict=True)):
        start = 0
        for unit in units:
            skipped = known if unit.stroke == 1 and not unit.answer else 0
            part = row.ids[end:] if unit.answer else row.ids[skipped:end]
            here = slice(start, start + len(part))
            before = unit.stroke if unit.answer else unit.stroke - 1  # strokes whose positions come first
            first = plan.slots + (min(before, int(unit.answer)) if plan.mix == "gated" else before) * end + skipped
            ids[place, here] = part
            position[place, here] = np.arange(first, first + len(part))
            stroke[place, here], answer[place, here], valid[place, here] = unit.stroke, unit.answer, True
            start += len(part)
    tags = Tags(*(torch.from_numpy(part) for part in (position, stroke, answer, valid)))
    return Pass(torch.from_numpy(ids), tags, weights)


__all__ = ["Laid", "Pass", "cut", "lay", "passes_of", "repeat"]
