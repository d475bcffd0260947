"""The closed set of labels that a masked encoder chooses from, and what it is refused for before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config import EncoderSettings, TuneSettings
from ..data.facts import different_answers
from ..data.records import Record
from ..errors import InputError
from ..measures.metrics import LABELS, label_set
from ..prompts.verbalizer import Verbalizer

if TYPE_CHECKING:
    from ..models.kinds import Kind
    from ..models.methods import Method
    from ..models.reading import ReadingPlan


def labels_of(parts: Sequence[Sequence[Record]], settings: EncoderSettings) -> Verbalizer | None:
    """The labels of a file of words, else those of the rows in their own words; None where rows are no label rows."""
    if settings.verbalizer != "auto":
        return Verbalizer.from_file(settings.verbalizer)
    # Read one after the other: five million different texts are no labels after the first hundred.
    answers: Any = (answer for part in parts for answer in different_answers(part) if answer)
    found = label_set(answers, of=sum(map(len, parts)))
    return Verbalizer.of(found) if found else None


def how_to_load(
    settings: TuneSettings, method: Method, plan: ReadingPlan, labels: Verbalizer | None, cut_up: bool
) -> dict[str, Any]:
    """What `backbone.load` is told besides. cut_up: weights will lie in parts on several processes."""
    accepts = partial(_check_kind, method=method, plan=plan, labels=labels, model=settings.model, cut_up=cut_up)
    return {"offline": settings.offline, "head": settings.encoder.head, "accepts": accepts}


def _check_kind(
    kind: Kind, *, method: Method, plan: ReadingPlan, labels: Verbalizer | None, model: str, cut_up: bool
) -> None:
    """Raises InputError for a kind of backbone that can't be tuned so, or not on these rows."""
    method.check_kind(kind.name)
    kind.check_plan(plan)
    if cut_up:
        kind.check_cut_up()
    if kind.chooses and labels is None:
        raise InputError(
            f"model: '{model}' is an encoder, which chooses among labels and writes no text, and these answers are no "
            f"closed set of labels (want 2 to {LABELS} different ones, each three times on average, or "
            "--encoder.verbalizer with the labels)"
        )


__all__ = ["how_to_load", "labels_of"]
