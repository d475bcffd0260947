"""Rows of a table: TSV and CSV.

TSV is `instruction<TAB>answer` without quoting; `\\t`, `\\n` and `\\\\` are tab, newline, backslash. CSV is RFC 4180: a
field in quotes may hold anything, quotes in it are doubled; its first record is a header unless columns go by number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import nearest
from .columns import ANSWER, INSTRUCTION
from .turns import RowError, shown

_ESCAPE = re.compile(r"\\([tn\\])")
_MEANS = {"t": "\t", "n": "\n", "\\": "\\"}


def unescape(field: str) -> str:
    """Undo the three escapes; any other backslash stays as typed (`\\d` is `\\d`)."""
    return _ESCAPE.sub(lambda match: _MEANS[match[1]], field) if "\\" in field else field


# One field: in quotes, or without any.
_FIELD = {sign: re.compile(f'"((?:[^"]++|"")*+)"|([^"{sign}]*+)') for sign in (",", ";")}
SIGNS = {"\t": "tab", ",": "comma", ";": "semicolon"}


def split_csv(text: str, sign: str = ",") -> list[str]:
    """The fields of one record; raises `RowError` where quotes are odd."""
    if '"' not in text:
        return text.split(sign)
    fields: list[str] = []
    place, pattern = 0, _FIELD[sign]
    while True:
        field = pattern.match(text, place)
        if field is None or (field.end() < len(text) and text[field.end()] != sign):
            raise RowError("", f"an odd quote in field {len(fields) + 1} (want quotes around the field, or doubled)")
        fields.append(field[2] if field[1] is None else field[1].replace('""', '"'))
        if field.end() == len(text):
            return fields
        place = field.end() + 1


def csv_sign(head: str) -> str:
    """The character between the fields of a CSV file, by its first line: a semicolon where there is no comma."""
    outside = re.sub('"[^"]*"', "", head.partition("\n")[0])
    return ";" if ";" in outside and "," not in outside else ","


@dataclass(frozen=True)
class Table:
    """What the first row says about a file: its columns, whether it was a header, role -> column, the separator."""

    names: tuple[str, ...]
    header: bool
    columns: dict[str, str]
    sign: str = "\t"

    def row(self, text: str) -> dict[str, str]:
        """Column -> text of one row; raises `RowError` where the number of fields is another."""
        fields = _fields(text, self.sign)
        if len(fields) != len(self.names):
            kind = SIGNS[self.sign]
            raise RowError("", f"wrong number of {kind}-separated fields (got {len(fields)}, want {len(self.names)})")
        return dict(zip(self.names, fields, strict=True))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {"names": list(self.names), "header": self.header, "columns": self.columns, "sign": self.sign}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Table:
        """The table that `to_json` was asked of."""
        return cls(tuple(known["names"]), known["header"], dict(known["columns"]), known["sign"])


def _fields(text: str, sign: str) -> list[str]:
    return [unescape(field) for field in text.split("\t")] if sign == "\t" else split_csv(text, sign)


def table_of(first: str, given: Mapping[str, str], *, fixed: bool = False, sign: str = "\t") -> Table:
    """Look at the first row. `fixed`: the instruction is the same for all rows. Raises `RowError`."""
    fields = [field.strip() for field in _fields(first, sign)]
    by_number = bool(given) and all(column.isdigit() for column in given.values())
    header = _is_header(fields, given) or (sign != "\t" and not by_number)
    if "messages" in given or "history" in given:
        got = "TSV" if sign == "\t" else "CSV"
        raise RowError("columns", f"messages and history need JSON or Parquet (got {got})")
    if header:
        names = tuple(field or f"column {number}" for number, field in enumerate(fields, start=1))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RowError("header", f"column '{shown(twice)}' is there twice")
    elif given:
        names = tuple(f"column {number}" for number in range(1, len(fields) + 1))
    else:
        names = ("input" if fixed else "instruction", "answer")
    return Table(names, header, {role: _column(role, column, names) for role, column in given.items()}, sign)


def _column(role: str, column: str, names: tuple[str, ...]) -> str:
    if column in names:
        return column
    if column.isascii() and column.isdigit():
        if not 1 <= int(column[:9]) <= len(names):
            raise RowError("columns", f"{role}: no such column (got {column[:9]}, want 1 to {len(names)})")
        return names[int(column) - 1]
    match = nearest(column, names)
    got = f"did you mean '{shown(match)}'?" if match else f"known: {', '.join(map(shown, names))}"
    raise RowError("columns", f"{role}: no column '{shown(column)}', {got}")


def _is_header(fields: list[str], given: Mapping[str, str]) -> bool:
    """Whether a line names columns: the user asks for some by name, or instruction and answer have usual names.

    A slip of the pen in one of the two (`instruction<TAB>reponse`) is still a header, so that it is reported and
    does not become a row to learn from.
    """
    if any(not column.isdigit() for column in given.values()):
        return True
    if any(not field or len(field) > 60 for field in fields):
        return False
    names = [field.lower() for field in fields]
    sides = [set(names) & set(options) for options in (INSTRUCTION, ANSWER)]
    if all(sides):
        return True
    for known, options in ((sides[0], ANSWER), (sides[1], INSTRUCTION)):
        if known and any(nearest(name, options, cutoff=0.8) for name in names if name not in known):
            return True
    return False
