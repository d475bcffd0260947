"""Settings from a YAML file and the command line, and where each value came from.

Every scalar of the file is taken as the text that stands there and read by the type of its field, as on the command
line: YAML 1.1 would make text of `1e-4`, a truth value of `no` and 8 of `010`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from .config import Settings, Source
from .errors import DataError, InputError, Problem, nearest, path_problem
from .yamlfile import compose

S = TypeVar("S", bound=Settings)

COMMAND_LINE = "command line"
DATA = "data"  # the one key of a file that is not a setting: the rows files
PATHS = ("model", "template", "validation", "out")  # settings that are, or may be, the name of a file or folder
NULLS = ("", "~", "null", "none")
TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

# What other programs call these settings, for the hint at an unknown key.
ELSEWHERE = {
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch_size": "batch_tokens",
    "micro_batch_size": "batch_rows",
    "per_device_train_batch_size": "batch_rows",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "max_grad_norm": "clip",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "output_dir": "out",
    "base_model": "model",
    "model_name_or_path": "model",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "dtype": "precision",
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its dotted key, what it may be, and what it is if nobody says anything."""

    key: str
    base: Any  # bool, int, float, str, dict, or the tuple of choices
    optional: bool
    want: str
    default: Any
    description: str
    group: str

    @property
    def switch(self) -> bool:
        """True for what can be turned on and off without a value: `--resume`, `--no-resume`."""
        return self.base is bool or (isinstance(self.base, tuple) and True in self.base)


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Checked settings, where each came from (`default`, `run.yaml:12`, `command line`) and the rows files named.

    `origins` has every key of the class, and `data` where rows files were named.
    """

    settings: S
    origins: dict[str, str]
    data: tuple[str | Source, ...] = ()


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was written: text, list of texts (and, of `data`, sources) or pairs."""

    key: str
    value: str | list[Any] | dict[str, str]
    file: str
    line: int
    quoted: bool = False

    @property
    def origin(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def problem(self, reason: str) -> Problem:
        return Problem(self.file, self.line, self.key, reason)


def resolve(cls: type[S], file: Path | None, overrides: Sequence[tuple[str, str]]) -> Resolved[S]:
    """Defaults, then the file, then the overrides (pairs of key and text; `lora.rank`, `lora-rank`, `lora_rank`).

    Raises `DataError` with every problem of both, each at its line.
    """
    leaves = leaves_of(cls)
    problems: list[Problem] = []
    given = list(_from_file(file, leaves, problems)) if file else []
    given += [_Given(_spelled(key, leaves), text, COMMAND_LINE, 0, quoted=False) for key, text in overrides]
    chosen: dict[str, _Given] = {}
    for item in given:
        before = chosen.get(item.key)
        if item.key != DATA and item.key not in leaves:
            problems.append(item.problem(_unknown(item.key, leaves)))
        elif before and before.file == item.file and (item.line or before.value != item.value):
            problems.append(item.problem("given twice" + (f" (first in line {before.line})" if before.line else "")))
        else:
            chosen[item.key] = item
    data = chosen.pop(DATA, None)
    for item in chosen.values():
        if item.key in PATHS and isinstance(item.value, str) and (reason := path_problem(item.value)):
            problems.append(item.problem(reason))
    values = {key: _parse(item, leaves[key], problems) for key, item in chosen.items()}
    settings = _validated(cls, values, chosen, leaves, problems)
    if problems or settings is None:
        problems.sort(key=lambda problem: (problem.file == COMMAND_LINE, problem.line))
        raise DataError(problems)
    origins = {DATA: data.origin} if data else {}
    origins |= {key: chosen[key].origin if key in chosen else "default" for key in leaves}
    return Resolved(settings, origins, _files(data) if data else ())


def checked(cls: type[S], values: Mapping[str, Any]) -> S:
    """Settings from the keyword arguments of a Python call, where a section is a dict: `lora={"rank": 8}`.

    Raises InputError with every problem, one a line.
    """
    wrong = {key: path_problem(str(values[key])) for key in PATHS if values.get(key) is not None}
    if any(wrong.values()):
        raise InputError("\n".join(f"{key}: {reason}" for key, reason in wrong.items() if reason))
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        leaves = leaves_of(cls)
        lines: dict[str, str] = {}
        for detail in error.errors(include_url=False):
            parts = [str(part) for part in detail["loc"]]
            places = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            key = next((place for place in places if place in leaves), places[0])
            lines.setdefault(key, f"{key}: {_python_reason(key, detail, leaves)}")
        raise InputError("\n".join(lines.values())) from error


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


def leaves_of(cls: type[Settings]) -> dict[str, Leaf]:
    """Every setting of a class by its dotted key, in the order of the help."""
    leaves: dict[str, Leaf] = {}
    for name, field in cls.model_fields.items():
        base, optional, limits = _unwrap(field.annotation, field.metadata)
        if isinstance(base, type) and issubclass(base, Settings):
            for leaf in leaves_of(base).values():
                key = f"{name}.{leaf.key}"
                leaves[key] = Leaf(key, leaf.base, leaf.optional, leaf.want, leaf.default, leaf.description, base.group)
            continue
        owner = next(parent for parent in cls.__mro__ if name in parent.__dict__.get("__annotations__", {}))
        base = dict if get_origin(base) is dict else base
        want = _want(base, limits) + (" or none" if optional else "")
        default = field.get_default(call_default_factory=True)
        leaves[name] = Leaf(name, base, optional, want, default, field.description or "", owner.__dict__["group"])
    return leaves


def values_of(settings: Settings) -> dict[str, Any]:
    """The values of checked settings by dotted key."""
    values: dict[str, Any] = {}
    for key in leaves_of(type(settings)):
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value
    return values


def shown(value: Any) -> str:
    """A value as it could be given on the command line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{name}={column}" for name, column in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(value)
    return "''" if value == "" else str(value)


def _unwrap(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, bool, list[Any]]:
    """Plain type (or tuple of choices), whether None is allowed, and the limits of numbers."""
    limits = list(metadata)
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = [part for part in get_args(annotation) if part is not type(None)]
        base, _, more = _unwrap(inner, [])
        return base, True, limits + more
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        for item in extra:
            limits += getattr(item, "metadata", None) or [item]
        base, optional, more = _unwrap(inner, limits)
        return base, optional, more
    return (get_args(annotation) if get_origin(annotation) is Literal else annotation), False, limits


def _want(base: Any, limits: Sequence[Any]) -> str:
    """The allowed values in words: those that stand beside the type, where there are any."""
    if given := [limit for limit in limits if isinstance(limit, str)]:
        return given[0]
    if isinstance(base, tuple):
        texts = [shown(choice) for choice in base]
        return ", ".join(texts[:-1]) + f" or {texts[-1]}"
    if base in (int, float):
        bound = {
            name: getattr(limit, name) for limit in limits for name in ("gt", "ge", "lt", "le") if hasattr(limit, name)
        }
        if base is int:
            low = bound.get("ge", bound["gt"] + 1 if "gt" in bound else None)
            high = bound.get("le", bound["lt"] - 1 if "lt" in bound else None)
            parts = [f"from {low}" if low is not None else "", f"to {high}" if high is not None else ""]
            reach = " ".join(part for part in parts if part)
            return f"a whole number {reach}" + (" upwards" if high is None and low is not None else "")
        limits_in_words = [
            f"above {bound['gt']:g}" if "gt" in bound else "",
            f"from {bound['ge']:g}" if "ge" in bound else "",
        ]
        limits_in_words += [
            f"to {bound['le']:g}" if "le" in bound else "",
            f"to below {bound['lt']:g}" if "lt" in bound else "",
        ]
        upwards = " upwards" if "ge" in bound and not {"le", "lt"} & set(bound) else ""
        return " ".join(["a number", *filter(None, limits_in_words)]) + upwards
    return {bool: "true or false", dict: "pairs such as instruction=text,answer=label"}.get(base, "text")


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


def _parse(item: _Given, leaf: Leaf, problems: list[Problem]) -> Any:
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


def _files(item: _Given) -> tuple[str | Source, ...]:
    return (item.value,) if isinstance(item.value, str) else tuple(item.value)


def _validated(
    cls: type[S], values: dict[str, Any], given: dict[str, _Given], leaves: dict[str, Leaf], problems: list[Problem]
) -> S | None:
    """The settings object; pydantic's complaints become problems at the places that caused them."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    try:
        return cls.model_validate(nested)
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


def _got(item: _Given) -> str:
    if isinstance(item.value, str):
        text = item.value if item.value.strip() and item.value.isprintable() else repr(item.value)
        return text if len(text) <= 60 else text[:57] + "…"
    return "a list" if isinstance(item.value, list) else "a section"


def _from_file(file: Path, leaves: dict[str, Leaf], problems: list[Problem]) -> Iterator[_Given]:
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
) -> Iterator[_Given]:
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


def _leaf(key: str, node: yaml.Node, file: str, line: int, leaves: dict[str, Leaf], problems: list[Problem]) -> _Given:
    """One value; a list or a section where none can stand is left as it is, for the check of types to name."""
    if key == DATA and not isinstance(node, yaml.ScalarNode):
        return _Given(key, _sources(node, file, problems), file, line)
    if isinstance(node, yaml.ScalarNode):
        return _Given(key, node.value, file, line, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        texts = [item.value for item in node.value if isinstance(item, yaml.ScalarNode)]
        return _Given(key, texts, file, line)
    pairs: dict[str, str] = {}
    for name, value in node.value:
        if not (isinstance(name, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            if key in leaves:
                problems.append(
                    Problem(file, name.start_mark.line + 1, key, f"nested too deep (want {leaves[key].want})")
                )
        elif name.value in pairs:
            problems.append(Problem(file, name.start_mark.line + 1, f"{key}.{name.value}", "given twice"))
        else:
            pairs[name.value] = value.value
    return _Given(key, pairs, file, line)


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
