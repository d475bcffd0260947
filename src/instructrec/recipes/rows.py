"""Reading what a user hands over: files, dicts from Python, or rows that were read already."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import console
from ..config import DataSettings, EvaluateSettings, PromptingSettings, Source, TuneSettings
from ..data.facts import files_of
from ..data.index import large
from ..data.mixing import Mixture, counts, shares
from ..data.places import files_of as found_files
from ..data.places import size_of
from ..data.readers import How, read_as
from ..data.records import Part, Record, Rows, merge
from ..data.streams import PACKED
from ..errors import InputError
from ..models import embedded
from ..prompts.template import Rendered

MEMORY = "<memory>"  # stands for a file name where rows came from Python
Data = str | os.PathLike | Source | Rows | Iterable[str | Source | Mapping[str, Any]]
_WEIGHTED = re.compile(r"(?P<path>.+):(?P<weight>[0-9.eE+-]+)")


def read_rows(
    data: Data, settings: TuneSettings | EvaluateSettings | PromptingSettings, rejected: Path | None = None
) -> Rows:
    """All rows of `data` with one account; what the reader guessed is said aloud.

    Raises DataError for bad rows (unless on_bad_row is skip), InputError for bad arguments.
    """
    if isinstance(data, Rows):
        return data
    sources = sources_of(data)
    parts, found = [], []
    stay = _size(sources, settings.offline) >= large()
    for number, source in enumerate(sources):
        target = rejected.with_stem(f"{rejected.stem}-{number + 1}") if rejected and len(sources) > 1 else rejected
        how = source.model_dump(exclude={"path", "weight"}, exclude_none=True) if isinstance(source, Source) else {}
        part = read_as(
            source.path if isinstance(source, Source) else source,
            How.of(
                how.get("format", settings.format),
                how.get("columns", settings.columns),
                how.get("instruction", settings.instruction),
                how.get("labels", settings.labels),
                settings.on_bad_row,
            ),
            rejected=target,
            offline=settings.offline,
            on_disk=stay,
        )
        for note in part.notes:
            console.note(note)
        parts.append(part)
        if isinstance(source, Source):
            found.append(Part(source.path, tuple(part.files), source.weight, how))
    rows = merge(parts)
    if len(sources) < 2 and (not found or found[0].weight is None):
        return rows
    met: dict[str, str] = {}
    for one in found:
        for file in one.files:
            if file in met:
                raise InputError(f"{file}: named twice (by {met[file]} and {one.name}, want each file in one source)")
            met[file] = one.name
    return replace(rows, sources=tuple(found))


def _size(sources: Sequence[Any], offline: bool) -> int:
    """Bytes of all files together."""
    paths = [source.path for source in sources if isinstance(source, Source)]
    return sum(size_of(found_files(path, offline)) for path in paths)


def sources_of(data: Data) -> list[Any]:
    """Each source of `data`: a `Source`, or rows from Python. A path may end in `:` and its weight: `rows.tsv:2`."""
    if isinstance(data, (str, os.PathLike, Source)):
        return [_source(data)]
    items = list(data)
    if not items or not isinstance(items[0], (str, os.PathLike, Source)):
        return [items]
    return [_source(item) for item in items]


def _source(item: Any) -> Source:
    if isinstance(item, Source):
        return item
    if not isinstance(item, (str, os.PathLike)):
        raise InputError(f"data: neither a path nor a Source (got {type(item).__name__})")
    path = os.fspath(item)
    match = _WEIGHTED.fullmatch(path)
    if match is None or os.path.lexists(path):
        return Source(path=path)
    try:
        return Source(path=match["path"], weight=float(match["weight"]))
    except ValueError:  # pydantic's is one, too
        raise InputError(
            f"{match['path']}: weight out of range (got {match['weight']}, want a number above 0)"
        ) from None


def name_of(data: Data) -> str:
    """A short name for folders and suites: of the first file, without its ending; `rows` where there is none."""
    first = data[0] if isinstance(data, (list, tuple)) and data else data
    if isinstance(first, Rows):
        first = next(iter(first.files), "")
    if not isinstance(first, (str, os.PathLike, Source)):
        return "rows"
    place = Path(_source(first).path)
    parts = [part for part in (place.stem, *reversed(place.parent.parts)) if not glob.has_magic(part)]
    stem = Path(parts[0]).stem if parts and place.suffix in PACKED else next(iter(parts), "")
    return stem.encode("utf-8", "backslashreplace").decode() or "rows"


def mixture(rows: Rows, records: Sequence[Record], settings: DataSettings, seed: int) -> Mixture | None:
    """How these records of `rows` are mixed, None where every one comes once in an epoch; says which it is.

    Raises InputError where a source has no rows left, or weights and temperature are both given.
    """
    if len(rows.sources) < 2:
        if settings.mix_temperature != 1:
            raise InputError("mix_temperature: there is nothing to mix (want two sources or more)")
        return None
    owner = {file: place for place, part in enumerate(rows.sources) for file in part.files}
    files, names = files_of(records)
    source = np.array([owner[name] for name in names], dtype=np.int64)[files] if len(files) else files
    numbers = [np.flatnonzero(source == place) for place in range(len(rows.sources))]
    for part, own in zip(rows.sources, numbers, strict=True):
        if not len(own) and part.weight is not None:
            raise InputError(
                f"{part.name}: no rows to train on are left of it, and it has a weight (got {part.weight:g})"
            )
    weights = [part.weight for part in rows.sources]
    parts = shares(list(map(len, numbers)), weights, settings.mix_temperature)
    plain = settings.mix_temperature == 1 and not any(weights)
    dealt = list(map(len, numbers)) if plain else counts(parts, len(records))
    told = ", ".join(
        f"{part.name} {count:,} rows ({share:.1%}{_often(count, len(own))})"
        for part, own, count, share in zip(rows.sources, numbers, dealt, parts, strict=True)
    )
    console.say(f"{len(rows.sources)} sources, {sum(dealt):,} rows an epoch: {told}")
    return None if plain else Mixture(tuple(numbers), tuple(dealt), seed)


def used(rows: Rows, rendered: Sequence[Rendered], steps: Sequence[Sequence[Sequence[int]]]) -> dict[str, int]:
    """How many rows of each source these steps have, repeats included; said aloud; {} where there is one source."""
    owner = {file: part.name for part in rows.sources for file in part.files}
    found = dict.fromkeys([part.name for part in rows.sources], 0)
    for number in (number for step in steps for batch in step for number in batch if found):
        found[owner[rendered[number].origin.file]] += 1
    if found:
        told = ", ".join(f"{name} {number:,}" for name, number in found.items())
        console.say(f"Rows of each source in {len(steps)} steps: {told}")
    return found


def _often(count: int, own: int) -> str:
    return "" if count == own else f", of {own:,}: {count / own:.2f} times each"


def announce(model: str) -> None:
    """Say so before a built-in model is fetched: it takes half a minute or more, the first time."""
    if model in embedded.MODELS and not embedded.cached(model):
        console.note(f"Fetching {model} (once, {embedded.MODELS[model].bytes / 1e6:.0f} MB) …")
