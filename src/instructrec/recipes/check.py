"""`instructrec check`: look at rows before they are used, without loading a model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import console
from ..config import Source, TuneSettings
from ..data.consistency import examine
from ..data.facts import column, tasks
from ..data.records import Record, Rows
from ..errors import InputError
from .damage import show_damaged
from .labels import labels_of
from .rows import announce, mixture, read_rows
from .watch import part_rows

GREEN = "bold green"


def check(
    files: Sequence[str | Source], test_files: Sequence[str], settings: TuneSettings, show: int = 0, damaged: int = 0
) -> None:
    """Read, account, look for trouble, say what tuning would hold out, measure lengths, and show rows, also damaged.

    Raises DataError for bad rows; trouble that is no error is printed as warnings.
    """
    rows = read_rows(list(files), settings, Path("rejected.jsonl"))
    console.say(f"{rows.read:,} rows read = {len(rows):,} used + {rows.rejected:,} rejected")
    test = read_rows(list(test_files), settings, Path("rejected-test.jsonl")) if test_files else Rows(())
    if test_files:
        console.say(f"{len(test):,} test rows read")
    watched = None
    if settings.validation is not None:
        watched = read_rows(settings.validation, settings, Path("rejected-validation.jsonl")).records
        console.say(f"{len(watched):,} validation rows read")
    _findings(rows.records, (*test, *(watched or ())))
    wordings = len(np.unique(column(rows.records, "wording")))
    console.say(f"{len(tasks(rows.records)[1]) or 'no'} tasks, {wordings:,} different wordings")
    try:
        parts = part_rows(rows.records, watched, settings)
        console.say(parts.explanation)
        mixture(rows, parts.train, settings, settings.seed)
    except InputError as error:
        console.warn(str(error))
    _lengths(rows.records, settings, show)
    if damaged:
        show_damaged(rows.records, damaged)


def _findings(rows: Sequence[Record], test: Sequence[Record]) -> None:
    found = examine(rows, test)
    for finding in found:
        places = ", ".join(str(place) for place in finding.examples)
        more = " …" if finding.count > len(finding.examples) else ""
        text = f"{finding.message} ({places}{more})"
        (console.warn if finding.severity == "warning" else console.note)(text)
    if not found:
        console.say("No duplicates, contradictions, copied answers, stray languages or overlap found")


def _lengths(rows: Sequence[Record], settings: TuneSettings, show: int) -> None:
    """Token counts under the model's own tokenizer, and the first rows as the model sees them."""
    from ..models.backbone import load_tokenizer
    from ..models.choosing import spell
    from ..prompts.choose import make_renderer
    from ..prompts.lengths import fit
    from ..prompts.shelf import column as sizes
    from ..prompts.shelf import targets

    announce(settings.model)
    tokenizer, limit, kind = load_tokenizer(settings.model, offline=settings.offline, head=settings.encoder.head)
    given: dict[str, Any] = {"default": kind.template, "closed": kind.closed, "masked": kind.masked}
    renderer = make_renderer(tokenizer, settings.template, settings.system, **given)
    if kind.chooses:
        labels = labels_of([rows], settings.encoder)
        told = f"Chooses among {len(labels.labels)} labels" if labels else "these answers are no closed set of labels"
        (console.say if labels else console.warn)(f"{told}: '{settings.model}' is an {kind.name}")
        renderer = renderer.with_labels(labels)
        try:
            limit -= spell(renderer, masked=kind.masked).extra if labels else 0
        except InputError as error:  # `tune` refuses it, unless it is given other words
            console.warn(str(error))
    fitted = fit(
        rows,
        renderer,
        settings.max_length or limit,
        settings.on_long,
        track=lambda records: console.track(records, "Rendering rows", unit="rows"),
        size=kind.size,
    )
    console.say(f"Prompt template: {renderer.name}; {fitted.describe()}")
    if warning := fitted.warning(rows):
        console.warn(warning)
    learned = int(targets(fitted.rendered).sum())
    total = int(sizes(fitted.rendered, "size").sum())
    if total:
        console.say(f"{total:,} tokens, {learned:,} of them supervised ({learned / total:.0%})")
    for row in fitted.rendered[:show]:
        console.say("")
        console.say(f"{row.origin}: {len(row.ids)} tokens, the supervised ones marked", "bold")
        _show(row, renderer)


def _show(row: Any, renderer: Any) -> None:
    """The row's text, supervised tokens in green on a terminal and between ⟦ ⟧ elsewhere; a label as it is spelled."""
    start = 0
    while start < len(row.ids):
        end = start
        while end < len(row.ids) and row.supervised[end] == row.supervised[start]:
            end += 1
        ids = row.ids[start:end]
        label = renderer.labels and row.supervised[start]
        text = renderer.decode(ids) if label else renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        console.marked(text, row.supervised[start])
        start = end
    console.say("")
