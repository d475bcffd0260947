"""Rows laid out for the passes of a plan: which tokens go through the backbone together, and what each of them is.

Units (a stroke over the instruction, or an answer) that read with the same weights go together in one pass; what a
token may see is told by its tags alone (`attention.visible`), so units stand side by side in any order.

B rows, T tokens of a pass, N tokens of an instruction, N' supervised positions of a batch.
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
from .attention import Tags
from .plan import ReadingPlan


@dataclass(frozen=True)
class Pass:
    """One run through the backbone: ids [B, T], filled up on the right, and whose weights read them."""

    ids: torch.Tensor
    tags: Tags
    weights: str

    def to(self, device: torch.device) -> Pass:
        """The same on another device."""
        return replace(self, ids=self.ids.to(device), tags=self.tags.to(device))


@dataclass(frozen=True)
class Laid:
    """Rows as passes; the last of them holds the answers.

    ends [B]: index into the last pass's B*T tokens of each row's last token.
    positions [N']: index of the tokens from which a supervised one is predicted.  targets [N'].
    owners [N']: the row that each of them belongs to.
    """

    passes: tuple[Pass, ...]
    ends: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor


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


def lay(rows: Sequence[Rendered], plan: ReadingPlan, strokes: int, *, pad_id: int, deep: bool = False) -> Laid:
    """Rows as the passes of `plan` with `strokes` readings. deep: an answer after every stroke.

    Only what is supervised behind x counts; an earlier answer inside x would see itself in an earlier stroke.
    """
    cuts = [cut(row) for row in rows]
    passes = []
    for weights, units in passes_of(plan, strokes, deep):
        passes.append(_pass(rows, cuts, plan, strokes, weights, units, pad_id))
    width = passes[-1].ids.shape[1]
    ends, positions, targets, owners = [], [], [], []
    last = passes_of(plan, strokes, deep)[-1][1]
    for place, (row, end) in enumerate(zip(rows, cuts, strict=True)):
        start = 0
        for unit in last:
            if unit.answer:
                for offset in range(1, len(row.ids) - end):
                    if row.supervised[end + offset]:
                        positions.append(place * width + start + offset - 1)
                        targets.append(row.ids[end + offset])
                        owners.append(place)
            start += len(row.ids) - end if unit.answer else end
        ends.append(place * width + start - 1)
    return Laid(tuple(passes), *(torch.tensor(part, dtype=torch.long) for part in (ends, positions, targets, owners)))


def _pass(
    rows: Sequence[Rendered],
    cuts: Sequence[int],
    plan: ReadingPlan,
    strokes: int,
    weights: str,
    units: Sequence[_Unit],
    pad_id: int,
) -> Pass:
    lengths = [
        sum(len(row.ids) - end if unit.answer else end for unit in units) for row, end in zip(rows, cuts, strict=True)
    ]
    shape = (len(rows), max(1, *lengths))
    ids = np.full(shape, pad_id, dtype=np.int64)
    position, stroke = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    answer, valid = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for place, (row, end) in enumerate(zip(rows, cuts, strict=True)):
        start = 0
        for unit in units:
            part = row.ids[end:] if unit.answer else row.ids[:end]
            here = slice(start, start + len(part))
            before = unit.stroke if unit.answer else unit.stroke - 1  # strokes whose positions come first
            first = plan.slots + (min(before, int(unit.answer)) if plan.mix == "gated" else before) * end
            ids[place, here] = part
            position[place, here] = np.arange(first, first + len(part))
            stroke[place, here], answer[place, here], valid[place, here] = unit.stroke, unit.answer, True
            start += len(part)
    tags = Tags(*(torch.from_numpy(part) for part in (position, stroke, answer, valid)))
    return Pass(torch.from_numpy(ids), tags, weights)


__all__ = ["Laid", "Pass", "cut", "lay", "passes_of", "repeat"]
