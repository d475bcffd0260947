"""What was written where, and what becomes of it: the words that settings and their synonyms share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Problem

Value = str | list[Any] | dict[str, str]  # a list of texts, or, of `data`, also sources

NULLS = ("", "~", "null", "none")
TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written: text, list of texts or pairs. name: what `key` was called there, where not `key`."""

    key: str
    value: Value
    file: str
    line: int
    quoted: bool = False
    name: str = ""

    @property
    def origin(self) -> str:
        """`run.yaml:12`, `run.yaml:12 as lora_rank` or `command line`."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} as {self.name}" if self.name else place

    def problem(self, reason: str) -> Problem:
        """A fault of this value, under the name by which it was given."""
        return Problem(self.file, self.line, self.name or self.key, reason)


@dataclass(frozen=True)
class Outcome:
    """What a name of another program comes to here; one of these holds.

    sets: our settings and their values (`data`: files); `unless` the same where nobody else says anything.
    left: why it is not needed.  refused: why it can't be honoured although the result would depend on it.
    """

    sets: Mapping[str, Value] = field(default_factory=dict)
    unless: Mapping[str, Value] = field(default_factory=dict)
    left: str = ""
    refused: str = ""


def text_of(value: Any) -> Value:
    """A value from Python as it would be written in a file."""
    if isinstance(value, (list, tuple)):
        return [str(text_of(item)) for item in value]
    if isinstance(value, Mapping):
        return {str(key): str(text_of(item)) for key, item in value.items()}
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def word(value: Value) -> str:
    """A text in lower case; '' for nothing, an empty list or section; several joined by commas."""
    if isinstance(value, str):
        return "" if value.strip().lower() in NULLS else value.strip().lower()
    return ",".join(value).lower()


def number(value: Value | None) -> float | None:
    """The number a text spells, or None."""
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def whole(value: Value | None) -> int | None:
    """The whole number a text spells, or None."""
    found = number(value)
    return int(found) if found is not None and abs(found) < 1e15 and found == int(found) else None
