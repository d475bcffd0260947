"""What `compare` compares: settings with a name, from files, from a grid of `--vary`, or from Python."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from .. import console
from ..config import DataSettings, Source, TuneSettings
from ..errors import InputError, did_you_mean
from ..settings import COMMAND_LINE, foreign_notes, leaves_of, nested, resolve, shown, values_of
from ..settings import checked as checked_settings
from .resume import FREE

MOST = 200  # settings: a grid grows by multiplying
READ_BY = tuple(DataSettings.model_fields)  # settings that say which rows there are


@dataclass(frozen=True)
class Contestant:
    """One setting: its name, which is that of its files too, and the data its file names."""

    name: str
    settings: TuneSettings
    data: tuple[str | Source, ...] = ()

    @property
    def slug(self) -> str:
        """The name as a file's: other characters than letters, digits, `.`, `=` and `_` become `-`."""
        return re.sub(r"[^\w.=]+", "-", self.name).strip("-.") or "setting"

    def of_seed(self, seed: int, out: Path) -> TuneSettings:
        """The settings of one run of the comparison."""
        return self.settings.model_copy(
            update={"seed": seed, "out": str(out), "learning_curve": False, "trackers": "none", "resume": False}
        )


Pairs = Sequence[tuple[str, str]]


def axes_of(vary: Sequence[str]) -> dict[str, list[str]]:
    """`["method=lora,ia3", "strokes=1;1,2"]` as settings and their values. Raises InputError.

    Values are parted by commas, or by semicolons where there are any.
    """
    axes: dict[str, list[str]] = {}
    for text in vary:
        key, equals, values = text.partition("=")
        found = [value.strip() for value in values.split(";" if ";" in values else ",")]
        if not equals or not key.strip() or not all(found):
            raise InputError(f"vary: want a setting and its values (got {text!r}, want method=lora,prefix_tuning)")
        if key.strip() in axes:
            raise InputError(f"vary: '{key.strip()}' is varied twice (want all its values in one --vary)")
        if len(set(found)) < len(found):
            raise InputError(f"vary: a value stands twice (got {text!r})")
        axes[key.strip()] = found
    return axes


def grid(axes: Mapping[str, Sequence[Any]]) -> list[list[tuple[str, Any]]]:
    """Every combination of values; `[[]]` where nothing is varied. Raises InputError where there are too many."""
    count = math.prod(len(values) for values in axes.values())
    if not 0 < count <= MOST:
        raise InputError(f"vary: too {'many' if count else 'few'} settings (got {count}, want 1 to {MOST})")
    return [list(zip(axes, combination, strict=True)) for combination in product(*axes.values())]


def from_files(files: Sequence[str], overrides: Pairs, axes: Mapping[str, Sequence[str]]) -> list[Contestant]:
    """Each settings file with each combination of what is varied; `overrides` hold for all of them.

    Raises DataError with the problems of a file, InputError for settings that can't be compared.
    """
    clash = sorted({key for key, _ in overrides} & {*axes})
    if clash:
        raise InputError(f"vary: '{clash[0]}' is given for all settings too (want one of the two)")
    found: list[Contestant] = []
    for file in files or [""]:
        for place, pairs in enumerate(grid(axes)):
            resolved = resolve(TuneSettings, Path(file) if file else None, [*overrides, *pairs])
            for note in foreign_notes(resolved) if place == 0 else ():
                console.note(note)
            where = resolved.origins["seed"]
            if place == 0 and where not in ("default", COMMAND_LINE):
                console.note(f"{where}: seed: left aside, a comparison has seeds of its own (--seeds)")
            found.append(Contestant(_label(Path(file).stem, pairs), resolved.settings, resolved.data))
    return checked(found, bool(axes))


def from_python(
    settings: Mapping[str, Mapping[str, Any]] | Sequence[Any] | None,
    axes: Mapping[str, Sequence[Any]],
    common: Mapping[str, Any],
) -> list[Contestant]:
    """The same from `{"small": {"lora": {"rank": 4}}, …}` or from settings files, and `{"method": ["lora", "ia3"]}`."""
    if settings is not None and not isinstance(settings, Mapping):
        flat = {key: value for key, value in _flat(common).items()}
        texts = {key: [shown(value) for value in values] for key, values in axes.items()}
        return from_files([str(file) for file in settings], [(key, shown(value)) for key, value in flat.items()], texts)
    found = []
    for name, own in (settings or {"": {}}).items():
        for pairs in grid(axes):
            values = _merged(_merged(dict(common), own), nested(dict(pairs)))
            found.append(Contestant(_label(name, pairs), checked_settings(TuneSettings, values)))
    return checked(found, bool(axes))


def _label(name: str, pairs: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(filter(None, [name, *(f"{key.rpartition('.')[2]}={shown(value)}" for key, value in pairs)]))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"lora": {"rank": 8}}` as `{"lora.rank": 8}`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = {f"{key}.{name}": part for name, part in _flat(value).items()} if isinstance(value, Mapping) else {}
        result |= inner or {key: value}
    return result


def _merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings where the others' win, sections merged."""
    sections = {
        key: _merged(dict(one[key]), value)
        for key, value in other.items()
        if isinstance(value, Mapping) and isinstance(one.get(key), Mapping)
    }
    return {**one, **other, **sections}


def checked(found: list[Contestant], varied: bool = False) -> list[Contestant]:
    """Two settings or more, each with a name of its own, none twice, all of the same rows. Raises InputError.

    varied: from a grid, in which some can come to the same (`lora.rank` means nothing to another method): left out.
    """
    named = _different(_named_apart(found), varied)
    if len(named) < 2:
        raise InputError(f"compare: want two settings or more (got {len(named)}: name two files, or --vary KEY=A,B)")
    first = named[0]
    for other in named[1:]:
        for key in READ_BY:
            one, two = getattr(first.settings, key), getattr(other.settings, key)
            if one != two:
                raise InputError(
                    f"{other.name}: {key}: rows are read otherwise than for {first.name} "
                    f"(got {shown(two)}, want {shown(one)}: a comparison is over the same rows)"
                )
    return named


def _different(found: Sequence[Contestant], varied: bool) -> list[Contestant]:
    kept: dict[str, Contestant] = {}
    for one in found:
        values = repr(sorted(plain(one.settings).items()))
        if values not in kept:
            kept[values] = one
        elif varied:
            console.note(f"{one.name}: left out, it comes to the same as {kept[values].name}")
        else:
            raise InputError(f"{one.name}: the same settings as {kept[values].name} (want settings that differ)")
    return list(kept.values())


def _named_apart(found: Sequence[Contestant]) -> list[Contestant]:
    """Files of one name in other folders get a number behind it."""
    taken: set[str] = set()
    result = []
    for one in found:
        number, named = 1, one
        while named.slug.lower() in taken:  # some file systems don't tell capitals apart
            number += 1
            named = replace(one, name=f"{one.name}-{number}")
        taken.add(named.slug.lower())
        result.append(named)
    return result


def rows_of(found: Sequence[Contestant], named: Sequence[str | Source]) -> tuple[str | Source, ...]:
    """The rows of all settings: those on the command line, else those that every file names. Raises InputError."""
    if named:
        return tuple(named)
    first = found[0]
    for other in found[1:]:
        if list(map(repr, other.data)) != list(map(repr, first.data)):
            one, two = (", ".join(map(str, each.data)) or "none" for each in (first, other))
            raise InputError(
                f"{other.name}: data: other rows than {first.name} (got {two}, want {one}: a comparison is over the "
                "same rows; name them on the command line)"
            )
    if not first.data:
        raise InputError("compare: no rows were named (want a file: instructrec compare a.yaml b.yaml rows.tsv)")
    return first.data


def plain(settings: TuneSettings) -> dict[str, Any]:
    """What shapes a run, flat, without the seed: `{"lora.rank": 4, …}`; sections of other methods are left out."""
    values = values_of(settings)
    sections = {key.partition(".")[0] for key in values if "." in key}
    return {
        key: value
        for key, value in values.items()
        if key not in (*FREE, "seed") and (key.partition(".")[0] not in sections - {settings.method})
    }


def differing(found: Sequence[Contestant]) -> dict[str, dict[str, str]]:
    """Key -> name -> value, of the keys that are not the same for all; '' where a setting has no such key.

    What only one method has is left out where it is as that method has it by default.
    """
    values = {one.name: plain(one.settings) for one in found}
    usual = {key: leaf.default for key, leaf in leaves_of(TuneSettings).items()}
    told = {}
    for key in dict.fromkeys(key for one in values.values() for key in one):
        having = [one[key] for one in values.values() if key in one]
        if any(value != having[0] for value in having) or (len(having) < len(values) and having[0] != usual[key]):
            told[key] = {name: shown(one[key]) if key in one else "" for name, one in values.items()}
    return told


def against(found: Sequence[Contestant], name: str) -> list[tuple[str, str]]:
    """The pairs that are compared: all, or each with the one of this name. Raises InputError."""
    names = [one.name for one in found]
    if name and name not in names:
        raise InputError(f"against: no setting of this name (got '{name}', {did_you_mean(name, names).lstrip(', ')})")
    if name:
        return [(other, name) for other in names if other != name]
    return [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
