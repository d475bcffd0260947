"""Reading what a user hands over: files, dicts from Python, or rows that were read already."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import console
from ..config import DataSettings
from ..data.readers import read
from ..data.records import Rows, merge
from ..models import embedded

MEMORY = "<memory>"  # stands for a file name where rows came from Python
Data = str | os.PathLike | Rows | Iterable[str | Mapping[str, Any]]


def read_rows(data: Data, settings: DataSettings, rejected: Path | None = None) -> Rows:
    """All rows of `data` with one account; what the reader guessed is said aloud.

    Raises DataError for bad rows (unless on_bad_row is skip), InputError for bad arguments.
    """
    if isinstance(data, Rows):
        return data
    sources: list[Any] = [data]
    if not isinstance(data, (str, os.PathLike)):
        sources = list(data)
        if sources and isinstance(sources[0], Mapping):
            sources = [sources]
    parts = []
    for number, source in enumerate(sources):
        target = rejected.with_stem(f"{rejected.stem}-{number + 1}") if rejected and len(sources) > 1 else rejected
        part = read(
            source,
            format=settings.format,
            columns=settings.columns,
            instruction=settings.instruction,
            on_bad_row=settings.on_bad_row,
            rejected=target,
        )
        for note in part.notes:
            console.note(note)
        parts.append(part)
    return merge(parts)


def announce(model: str) -> None:
    """Say so before a built-in model is fetched: it takes half a minute or more, the first time."""
    if model in embedded.MODELS and not embedded.cached(model):
        console.note(f"Fetching {model} (once, {embedded.MODELS[model].bytes / 1e6:.0f} MB) …")
