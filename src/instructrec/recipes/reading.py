"""What a reading plan asks of a tuning run: settings that go together, rows that it can read, the model behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import console
from ..config import TuneSettings
from ..data.records import Record
from ..errors import DataError, InputError
from ..models.backbone import Backbone
from ..models.methods import Method
from ..models.reading import Reading, ReadingPlan, cut, install, parse_strokes
from ..prompts.lengths import Fitted
from ..prompts.template import Rendered


def plan_of(settings: TuneSettings, method: Method) -> ReadingPlan:
    """The reading plan that was asked for. Raises InputError where it does not go with the rest."""
    names = ("prior", "stroke_adapters", "deep", "slots", "memory", "direction", "mix")
    plan = ReadingPlan(strokes=parse_strokes(settings.strokes), **{name: getattr(settings, name) for name in names})
    if plan.prior == "frozen" and not method.switchable:
        raise InputError(f"prior: frozen needs a method that can be switched off (got method '{method.name}')")
    if plan.stroke_adapters == "separate":
        if not method.several:
            raise InputError(f"stroke_adapters: separate needs a method with adapters (got method '{method.name}')")
        if settings.checkpointing:  # a layer would be recomputed with another stroke's adapter
            raise InputError("checkpointing: does not go with stroke_adapters=separate")
    return plan


def one_answer_each(records: Sequence[Record]) -> list[Record]:
    """Conversations cut into one record for each supervised answer: inside an instruction that is read again, an
    earlier answer would see itself. No answer is lost."""
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
    keep, problems = [], []
    limit = backbone.max_positions
    for place, row in enumerate(fitted.rendered):
        end = cut(row)
        prompt = plan.last_position(end, row.prompt_end - end, plan.most)
        size = backbone.kind.size(prompt, len(row.ids) - row.prompt_end)
        if size <= limit:
            keep.append(place)
            continue
        reason = f"{size:,} positions when read {plan.describe()}, over the model's {limit:,}"
        lower = " or ".join(["--strokes"] * (plan.most > 1) + ["--slots"] * (plan.slots > 0))
        advice = f"lower {lower}, or choose --on-long=drop"
        problems.append(row.origin.problem("length", f"{reason}; {advice}"))
    if problems and on_long != "drop":
        raise DataError(problems)
    if problems:
        console.note(f"{len(problems)} rows dropped: more positions when read {plan.describe()} than the model has")
    dropped = [fitted.kept[place] for place in range(len(fitted.kept)) if place not in set(keep)]
    return replace(
        fitted,
        rendered=[fitted.rendered[place] for place in keep],
        kept=[fitted.kept[place] for place in keep],
        dropped=sorted(fitted.dropped + dropped),
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
) -> Any:
    """The attached model behind its reading plan, as it starts or as a checkpoint has it; where an instruction is
    read once, the model itself."""
    if plan.plain:
        install(model.get_base_model() if hasattr(model, "get_base_model") else model)  # quicker on a processor
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
