"""What a reading plan asks of a tuning run: settings that go together, rows that it can read, the model behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import console
from ..config import TuneSettings
from ..data.facts import on_disk
from ..data.records import Record
from ..errors import DataError, InputError
from ..inference.loading import chooser
from ..models.backbone import Backbone
from ..models.choosing import Chooser
from ..models.methods import Method
from ..models.reading import Reading, ReadingPlan, cuts, install, parse_strokes
from ..prompts.lengths import Fitted
from ..prompts.shelf import Shelf, column
from ..prompts.template import Rendered, Renderer


def plan_of(settings: TuneSettings, method: Method) -> ReadingPlan:
    """The reading plan that was asked for. Raises InputError where it does not go with the rest."""
    names = ("prior", "stroke_adapters", "deep", "consistency", "slots", "memory", "direction", "mix")
    plan = ReadingPlan(strokes=parse_strokes(settings.strokes), **{name: getattr(settings, name) for name in names})
    if plan.prior == "frozen" and not method.switchable:
        raise InputError(f"prior: frozen needs a method that can be switched off (got method '{method.name}')")
    if plan.stroke_adapters == "separate":
        if not method.several:
            raise InputError(f"stroke_adapters: separate needs a method with adapters (got method '{method.name}')")
        if settings.checkpointing:  # a layer would be recomputed with another stroke's adapter
            raise InputError("checkpointing: does not go with stroke_adapters=separate")
    return plan


def one_answer_each(records: Sequence[Record]) -> Sequence[Record]:
    """Conversations cut into one record for each supervised answer: inside an instruction that is read again, an
    earlier answer would see itself. No answer is lost."""
    if (stored := on_disk(records)) and not (stored.column("answers") > 1).any():
        return records  # nothing to cut, so they can stay on disk
    cut_up: list[Record] = []
    for record in records:
        ends = [number for number, turn in enumerate(record.turns) if turn.role == "assistant" and turn.supervised]
        if ends in ([], [len(record.turns) - 1]):
            cut_up.append(record)
            continue
        for end in ends:
            turns = tuple(
                replace(turn, supervised=number == end) for number, turn in enumerate(record.turns[: end + 1])
            )
            cut_up.append(replace(record, turns=turns))
    return cut_up


def check_positions(fitted: Fitted, plan: ReadingPlan, backbone: Backbone, on_long: str) -> Fitted:
    """Rows that take more positions than the backbone has are an error, or dropped like other long rows.

    Some backbones would go past their limit without a word, others crash.
    """
    rows, limit = fitted.rendered, backbone.max_positions
    prompts, ends = column(rows, "prompt_end"), cuts(rows)
    taken = plan.last_position(ends, prompts - ends, plan.most)
    sizes = backbone.kind.size(taken, column(rows, "size") - prompts)
    over = np.flatnonzero(sizes > limit)
    if not len(over):
        return fitted
    if on_long != "drop":
        lower = " or ".join(["--strokes"] * (plan.most > 1) + ["--slots"] * (plan.slots > 0))
        told = f"positions when read {plan.describe()}, over the model's {limit:,}"
        told += f"; lower {lower}, or choose --on-long=drop"
        places = over.tolist()
        raise DataError([rows[place].origin.problem("length", f"{sizes[place]:,} {told}") for place in places])
    console.note(f"{len(over)} rows dropped: more positions when read {plan.describe()} than the model has")
    keep = np.flatnonzero(sizes <= limit)
    kept = np.asarray(fitted.kept)
    return replace(
        fitted,
        rendered=rows.take(keep) if isinstance(rows, Shelf) else [rows[place] for place in keep.tolist()],
        kept=kept[keep].tolist(),
        dropped=sorted([*fitted.dropped, *kept[over].tolist()]),
    )


def behind(
    plan: ReadingPlan,
    model: Any,
    method: Method,
    options: Mapping[str, Any],
    seed: int,
    *,
    rows: Sequence[Rendered],
    checkpoint: Path | None,
    renderer: Renderer | None = None,
) -> Any:
    """The attached model behind its reading plan, or before its labels, as it starts or as a checkpoint has it; where
    an instruction is read once, the model itself. From here on it computes as it is quickest to train
    (models/lowrank.py). rows: to start slots from.  renderer: with the labels that a model chooses among, if it does.
    """
    from ..models.lowrank import quicken  # PEFT comes with it

    quicken(model)
    if plan.plain:
        install(model.get_base_model() if hasattr(model, "get_base_model") else model)  # quicker on a processor
        model = chooser(model, renderer) if renderer else model
        if isinstance(model, Chooser) and checkpoint:
            model.load_extra(checkpoint)
        return model
    for place, name in enumerate(plan.adapters):
        if checkpoint:
            method.load_more(model, checkpoint, name, trainable=True)
        else:
            method.add(model, name, options, seed + 1 + place)
    reading = Reading(model, plan, method.using)
    if checkpoint:
        reading.load_extra(checkpoint)
    elif plan.slots:
        reading.start_slots(rows, "off" if method.switchable else "")
    return reading
