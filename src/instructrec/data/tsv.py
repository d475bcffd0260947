"""Tab-separated lines: `instruction<TAB>answer`, no quoting; `\\t`, `\\n` and `\\\\` are tab, newline, backslash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import nearest
from .columns import ANSWER, INSTRUCTION, RowError, shown

_ESCAPE = re.compile(r"\\([tn\\])")
_MEANS = {"t": "\t", "n": "\n", "\\": "\\"}


def unescape(field: str) -> str:
    """Undo the three escapes; any other backslash stays as typed (`\\d` is `\\d`)."""
    return _ESCAPE.sub(lambda match: _MEANS[match[1]], field) if "\\" in field else field


@dataclass(frozen=True)
class Table:
    """What the first line says about a file: names of its columns, whether it was a header, role -> column."""

    names: tuple[str, ...]
    header: bool
    columns: dict[str, str]

    def row(self, text: str) -> dict[str, str]:
        """Column -> text of one line; raises `RowError` where the number of fields is another."""
        fields = text.split("\t")
        if len(fields) != len(self.names):
            raise RowError("", f"wrong number of tab-separated fields (got {len(fields)}, want {len(self.names)})")
        return dict(zip(self.names, map(unescape, fields), strict=True))


def table_of(first: str, given: Mapping[str, str], *, fixed: bool = False) -> Table:
    """Look at the first line. `fixed`: the instruction is the same for all rows. Raises `RowError`."""
    fields = [unescape(field).strip() for field in first.split("\t")]
    header = _is_header(fields, given)
    if "messages" in given or "history" in given:
        raise RowError("columns", "messages and history need JSONL (got TSV)")
    if header:
        names = tuple(fields)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RowError("header", f"column '{shown(twice)}' is there twice")
    elif given:
        names = tuple(f"column {number}" for number in range(1, len(fields) + 1))
    else:
        names = ("input" if fixed else "instruction", "answer")
    return Table(names, header, {role: _column(role, column, names) for role, column in given.items()})


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
