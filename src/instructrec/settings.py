"""Settings from a YAML file and the command line, and where each value came from.

Every scalar of the file is taken as the text that stands there and read by the type of its field, as on the command
line: YAML 1.1 would make text of `1e-4`, a truth value of `no` and 8 of `010`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from . import console, synonyms
from .config import Settings, Source
from .errors import DataError, InputError, Problem, nearest, path_problem
from .leaves import Leaf, leaves_of, shown, values_of
from .synonyms import DATA, IGNORE, Fate
from .synonyms.given import NULLS, TRUTHS, Given, text_of
from .yamlfile import compose

S = TypeVar("S", bound=Settings)

COMMAND_LINE = "command line"
MAX_SHOWN = 200  # problems printed before the rest is only counted: a file of another program may have many
PATHS = ("model", "template", "validation", "out")  # settings that are, or may be, the name of a file or folder
# What shapes a result most: other programs have other defaults.
SHAPING = tuple(
    "learning_rate epochs schedule warmup weight_decay lora.rank lora.alpha lora.dropout batch_rows accumulation "
    "held_out patience seed".split()
)

# What these settings are called in yet other places, for the hint at an unknown key.
ELSEWHERE = {
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "batch_size": "batch_tokens",
    "micro_batch_size": "batch_rows",
    "base_model": "model",
    "r": "lora.rank",
}


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Checked settings, where each came from (`default`, `run.yaml:12`, `command line`) and the rows files named.

    `origins` has every key of the class, and `data` where rows files were named.  `fates`: what became of the names
    that are other programs'.
    """

    settings: S
    origins: dict[str, str]
    data: tuple[str | Source, ...] = ()
    fates: tuple[Fate, ...] = ()


def resolve(cls: type[S], file: Path | None, overrides: Sequence[tuple[str, str]]) -> Resolved[S]:
    """Defaults, then the file, then the overrides (pairs of key and text; `lora.rank`, `lora-rank`, `lora_rank`).

    Raises `DataError` with every problem of both, each at its line.
    """
    leaves = leaves_of(cls)
    problems: list[Problem] = []
    given = list(_from_file(file, leaves, problems)) if file else []
    given += [Given(_spelled(key, leaves), text, COMMAND_LINE, 0, quoted=False) for key, text in overrides]
    translation = synonyms.translate(given, leaves, _ignored(given, leaves, problems))
    chosen = _chosen(translation.given, leaves, problems)
    data = chosen.pop(DATA, None)
    for item in chosen.values():
        if item.key in PATHS and isinstance(item.value, str) and (reason := path_problem(item.value)):
            problems.append(item.problem(reason))
    values = {key: _parse(item, leaves[key], problems) for key, item in chosen.items()}
    settings = _validated(cls, values, chosen, leaves, problems)
    problems += [fate.item.problem(f"{fate.text} (got {_got(fate.item)})") for fate in translation.refused]
    if problems or settings is None:
        raise SettingsError(problems, translation.fates, _advice(problems, translation, given, leaves))
    origins = {DATA: data.origin} if data else {}
    origins |= {key: chosen[key].origin if key in chosen else "default" for key in leaves}
    return Resolved(settings, origins, _files(data) if data else (), tuple(translation.fates))


class SettingsError(DataError):
    """Settings that can't be: every problem, and the fate of every name of another program."""

    def __init__(self, problems: list[Problem], fates: Sequence[Fate], advice: str) -> None:
        problems.sort(key=lambda problem: (problem.file == COMMAND_LINE, problem.line))
        super().__init__(problems, advice=advice, shown=MAX_SHOWN)
        self.fates = tuple(fates)


def _ignored(given: Sequence[Given], leaves: Mapping[str, Leaf], problems: list[Problem]) -> set[str]:
    """The names that `ignore` leaves out; each must be given, and not be one of ours."""
    item = next((item for item in reversed(given) if item.key == IGNORE), None)
    if item is None or IGNORE not in leaves:
        return set()
    names = {name.strip() for name in (item.value.split(",") if isinstance(item.value, str) else item.value)} - {""}
    keys = {one.key for one in given}
    for name in sorted(names - keys):
        near = nearest(name, keys)
        problems.append(item.problem(f"'{name}' is not given" + (f", did you mean '{near}'?" if near else "")))
    for name in sorted(names & {*leaves, DATA}):
        problems.append(item.problem(f"'{name}' is a setting of this program: take it out instead"))
    return names - {*leaves, DATA}


def _chosen(given: Sequence[Given], leaves: dict[str, Leaf], problems: list[Problem]) -> dict[str, Given]:
    """The value that holds for each key: the command line's, else the file's."""
    chosen: dict[str, Given] = {}
    for item in given:
        before = chosen.get(item.key)
        if item.key != DATA and item.key not in leaves:
            problems.append(item.problem(_unknown(item.key, leaves)))
        elif before and before.file == item.file and before.name != item.name:
            if _plain(before, leaves) != _plain(item, leaves):
                where = f" in line {before.line}" if before.line else ""
                other = f"{before.name or before.key}{where} gives it as {_got(before)}"
                problems.append(item.problem(f"means {item.key} {_got(item)}, but {other}"))
        elif before and before.file == item.file and (item.line or before.value != item.value):
            problems.append(item.problem("given twice" + (f" (first in line {before.line})" if before.line else "")))
        else:
            chosen[item.key] = item
    return chosen


def _plain(item: Given, leaves: dict[str, Leaf]) -> Any:
    return _files(item) if item.key == DATA else _parse(item, leaves[item.key], [])


def _advice(problems: list[Problem], translation: synonyms.Translation, given: list[Given], leaves: Any) -> str:
    """How to go on without what can't be honoured, where other programs' names are among what is given."""
    if not translation.refused or IGNORE not in leaves:
        return ""
    unknown = [item.key for item in translation.given if item.key not in leaves and item.key != DATA]
    names = [fate.item.key for fate in translation.refused] + unknown
    return f"--ignore {','.join(dict.fromkeys(names))} leaves these out, with another result"


def checked(cls: type[S], values: Mapping[str, Any]) -> S:
    """Settings from the keyword arguments of a Python call, where a section is a dict: `lora={"rank": 8}`.

    Raises InputError with every problem, one a line.
    """
    leaves = leaves_of(cls)
    values = _translated(values, leaves)
    wrong = {key: path_problem(str(values[key])) for key in PATHS if values.get(key) is not None}
    if any(wrong.values()):
        raise InputError("\n".join(f"{key}: {reason}" for key, reason in wrong.items() if reason))
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        lines: dict[str, str] = {}
        for detail in error.errors(include_url=False):
            parts = [str(part) for part in detail["loc"]]
            places = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            key = next((place for place in places if place in leaves), places[0])
            lines.setdefault(key, f"{key}: {_python_reason(key, detail, leaves)}")
        raise InputError("\n".join(lines.values())) from error


def _translated(values: Mapping[str, Any], leaves: dict[str, Leaf]) -> dict[str, Any]:
    """Keyword arguments with the names of other programs replaced by ours, said aloud. Raises InputError."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        section = isinstance(value, Mapping) and any(known.startswith(key + ".") for known in leaves)
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if section else {key: value}
    items = [Given(key, text_of(value), "", 0) for key, value in flat.items()]
    problems: list[Problem] = []
    translation = synonyms.translate(items, leaves, _ignored(items, leaves, problems))
    if not problems and not translation.taken:
        return dict(values)
    ours = [item for item in translation.given if item.key in leaves or item.key == DATA]
    chosen = _chosen(ours, leaves, problems)
    if DATA in chosen:
        problems.append(chosen.pop(DATA).problem("the rows are the first argument"))
    problems += [fate.item.problem(f"{fate.text} (got {_got(fate.item)})") for fate in translation.refused]
    result = {key: value for key, value in flat.items() if key not in translation.taken}
    result |= {key: _parse(item, leaves[key], problems) for key, item in chosen.items() if item.name}
    if problems:
        advice = _advice(problems, translation, items, leaves).replace("--ignore ", "ignore=")
        raise InputError("\n".join([*(f"{one.field}: {one.reason}" for one in problems), *filter(None, [advice])]))
    for line in synonyms.notes(translation.fates, "keyword arguments"):
        console.note(line)
    return nested(result)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"lora.rank": 8}` as `{"lora": {"rank": 8}}`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return result


def _python_reason(key: str, detail: Mapping[str, Any], leaves: dict[str, Leaf]) -> str:
    if detail["type"] == "extra_forbidden":
        section, _, name = _spelled(key, leaves).rpartition(".")
        inside = section and "." not in key.removeprefix(section + ".") and f"{section}.{name}" in leaves
        return f"unknown setting, want {section}={{'{name}': …}}" if inside else _unknown(key, leaves)
    got = repr(detail["input"])
    got = got if len(got) <= 60 else got[:57] + "…"
    if key in leaves:
        return f"{_reason(detail['type'])} (got {got}, want {leaves[key].want})"
    known = ", ".join(leaf.removeprefix(key + ".") for leaf in leaves if leaf.startswith(key + "."))
    return f"is a section (got {got}, want a dict" + (f" with some of {known})" if known else ")")


def fate_rows(fates: Sequence[Fate]) -> list[tuple[str, ...]]:
    """For a table: name, value, place, and what became of it."""
    return [(fate.item.key, _got(fate.item), fate.item.origin, fate.kind, fate.text) for fate in fates]


def foreign_notes(resolved: Resolved[Any]) -> list[str]:
    """What is to be said about names of other programs: how each was taken, and which of our defaults hold beside."""
    if not resolved.fates:
        return []
    source = resolved.fates[0].item.file
    values = values_of(resolved.settings)
    shaping = [key for key in SHAPING if key.startswith("lora.") <= (values.get("method") == "lora")]
    silent = [key for key in shaping if resolved.origins.get(key) == "default"]
    ours = ", ".join(f"{key} {shown(values[key])}" for key in silent)
    said = synonyms.notes(resolved.fates, source)
    return [*said, f"{source}: not said, so our defaults hold: {ours}"] if ours else said


def _spelled(key: str, leaves: dict[str, Leaf]) -> str:
    """The known key that a spelling with dashes or underscores means."""
    plain = key.strip().replace("-", "_")
    by_flat = {known.replace(".", "_"): known for known in leaves}
    return by_flat.get(plain.replace(".", "_"), plain)


def _unknown(key: str, leaves: dict[str, Leaf]) -> str:
    prefix, _, last = key.rpartition(".")
    match = ELSEWHERE.get(key)
    inside = [known for known in leaves if prefix and known.startswith(prefix + ".")]
    match = match if match in leaves else nearest(key, leaves)
    if not match and inside:
        return "unknown setting, known: " + ", ".join(inside)
    by_leaf = {known.rpartition(".")[2]: known for known in leaves}
    match = match or by_leaf.get(last)
    if match:
        return f"unknown setting, did you mean '{match}'?"
    return "unknown setting ('instructrec config show' lists all)"


def _parse(item: Given, leaf: Leaf, problems: list[Problem]) -> Any:
    """The value as its field's type; what can't be read as that is passed on as text, for pydantic to refuse."""
    value = item.value
    if not isinstance(value, str) or (item.quoted and leaf.base is str):
        return value
    text = value.strip()
    if leaf.optional and not item.quoted and (text.lower() in NULLS[1:] or (text == "" and item.line)):
        return None
    if text == "" and item.line and not item.quoted:
        problems.append(item.problem(f"has no value (want {leaf.want})"))
        return leaf.default
    reader = _to_bool if leaf.switch else _READERS.get(leaf.base)
    return reader(text) if reader else value


def _to_int(text: str) -> Any:
    number = _to_float(text)
    if re.fullmatch(r"[+-]?\d{1,18}", text):  # Python refuses to convert thousands of digits
        return int(text)
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 1e18 else text


def _to_float(text: str) -> Any:
    try:  # YAML writes .inf and .nan
        return float(re.sub(r"^([+-]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
    except ValueError:
        return text


def _to_bool(text: str) -> Any:
    return TRUTHS.get(text.lower(), text)


_READERS: dict[Any, Callable[[str], Any]] = {int: _to_int, float: _to_float}


def _files(item: Given) -> tuple[str | Source, ...]:
    return (item.value,) if isinstance(item.value, str) else tuple(item.value)


def _validated(
    cls: type[S], values: dict[str, Any], given: dict[str, Given], leaves: dict[str, Leaf], problems: list[Problem]
) -> S | None:
    """The settings object; pydantic's complaints become problems at the places that caused them."""
    try:
        return cls.model_validate(nested(values))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            parts = [str(part) for part in detail["loc"]]
            key = next(
                (".".join(parts[:end]) for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in given), ""
            )
            if not key:
                message = detail["msg"].removeprefix("Value error, ")
                problems.append(Problem(next((item.file for item in given.values()), COMMAND_LINE), 0, "", message))
            elif not any(problem.field == key for problem in problems):
                reason = f"{_reason(detail['type'])} (got {_got(given[key])}, want {leaves[key].want})"
                problems.append(given[key].problem(reason))
        return None


def _reason(kind: str) -> str:
    if kind.startswith(("greater_than", "less_than")):
        return "out of range"
    return {"literal_error": "unknown value", "finite_number": "not a finite number"}.get(kind, "not the right kind")


def _got(item: Given) -> str:
    if isinstance(item.value, str):
        text = item.value if item.value.strip() and item.value.isprintable() else repr(item.value)
        return text if len(text) <= 60 else text[:57] + "…"
    return "a list" if isinstance(item.value, list) else "a section"


def _from_file(file: Path, leaves: dict[str, Leaf], problems: list[Problem]) -> Iterator[Given]:
    """The values a YAML file gives, each with its line; raises at once when it isn't YAML that we take."""
    name, root = str(file), compose(file, "settings")
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "text"
        line = root.start_mark.line + 1
        raise DataError([Problem(name, line, "", f"not settings (got {kind}, want lines such as learning_rate: 1e-4)")])
    yield from _walk(root, "", name, leaves, problems)


def _walk(
    node: yaml.MappingNode, prefix: str, file: str, leaves: dict[str, Leaf], problems: list[Problem]
) -> Iterator[Given]:
    """The leaves under a mapping; sections are known by the keys that start with their name."""
    first: dict[str, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(file, line, "", "a list or section cannot be the name of a setting"))
            continue
        key = prefix + key_node.value
        if key in first:
            problems.append(Problem(file, line, key, f"given twice (first in line {first[key]})"))
            continue
        first[key] = line
        section = any(known.startswith(key + ".") for known in leaves)
        if section and isinstance(value, yaml.MappingNode):
            yield from _walk(value, key + ".", file, leaves, problems)
        elif section:
            if not (isinstance(value, yaml.ScalarNode) and value.value.lower() in NULLS):
                known = ", ".join(known for known in leaves if known.startswith(key + "."))
                problems.append(Problem(file, line, key, f"is a section (want it to hold some of {known})"))
        else:
            yield _leaf(key, value, file, line, leaves, problems)


def _leaf(key: str, node: yaml.Node, file: str, line: int, leaves: dict[str, Leaf], problems: list[Problem]) -> Given:
    """One value; a list or a section where none can stand is left as it is, for the check of types to name."""
    if key == DATA and not isinstance(node, yaml.ScalarNode):
        return Given(key, _sources(node, file, problems), file, line)
    if isinstance(node, yaml.ScalarNode):
        return Given(key, node.value, file, line, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        texts = [item.value if isinstance(item, yaml.ScalarNode) else "…" for item in node.value]
        return Given(key, texts, file, line)
    pairs: dict[str, str] = {}
    for name, value in node.value:
        if not (isinstance(name, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            if key in leaves:
                problems.append(
                    Problem(file, name.start_mark.line + 1, key, f"nested too deep (want {leaves[key].want})")
                )
            pairs[f"{name.start_mark.line + 1}"] = "…"
        elif name.value in pairs:
            problems.append(Problem(file, name.start_mark.line + 1, f"{key}.{name.value}", "given twice"))
        else:
            pairs[name.value] = value.value
    return Given(key, pairs, file, line)


def _sources(node: yaml.Node, file: str, problems: list[Problem]) -> list[str | Source]:
    """What stands under `data`: file names, and sections with a path and how to read it."""
    found: list[str | Source] = []
    leaves = leaves_of(Source)
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for number, item in enumerate(items):
        line = item.start_mark.line + 1
        if isinstance(item, yaml.ScalarNode):
            found.append(item.value)
        elif isinstance(item, yaml.MappingNode):
            before = len(problems)
            given = {value.key: value for value in _walk(item, "", file, leaves, problems)}
            problems += [value.problem(_unknown(key, leaves)) for key, value in given.items() if key not in leaves]
            values = {key: _parse(value, leaves[key], problems) for key, value in given.items() if key in leaves}
            source = _validated(Source, values, given, leaves, problems)
            if source is not None and len(problems) == before and (reason := path_problem(source.path)):
                problems.append(Problem(file, line, "path", reason))
            found += [source] if source else []
            for place in range(before, len(problems)):  # name the source, too: `data[1].weight`
                problem = problems[place]
                problems[place] = replace(problem, field=f"{DATA}[{number}].{problem.field}".rstrip("."))
        else:
            problems.append(
                Problem(file, line, f"{DATA}[{number}]", "a list inside the list (want a file name or path:)")
            )
    if not items:
        problems.append(Problem(file, node.start_mark.line + 1, DATA, "is empty (want file names)"))
    return found


__all__ = ["Leaf", "Resolved", "SettingsError", "checked", "leaves_of", "resolve", "shown", "values_of"]
