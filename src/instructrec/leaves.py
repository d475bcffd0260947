"""Settings classes as flat lists: every setting by its dotted key, what it may be, and how it is written."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .config import Settings


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
