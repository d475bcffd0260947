"""From one row's bytes to its record: pure functions, once the file's first rows have decided what its columns are.

`readers` walks over files and calls this; so can whoever keeps the places of rows and reads them again one by one:
`Parser.from_json(parser.to_json())` makes the same records of the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import jsonl
from .columns import Columns
from .records import Origin, Record
from .tables import Table
from .turns import RowError


class Parser:
    """What is known of a file: how its rows are written, the columns of a table, what each column is."""

    def __init__(self, format: str, columns: Columns, table: Table | None = None) -> None:
        self.format, self.columns, self.table = format, columns, table

    def values(self, raw: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
        """Column -> value of one row; raises `RowError`. Rows that are values already (Parquet) are checked only."""
        if isinstance(raw, bytes):
            text = decoded(raw)
            return self.table.row(text) if self.table else jsonl.parse(text)
        jsonl.check_texts(raw)
        return raw

    def record(self, raw: bytes | Mapping[str, Any], origin: Origin) -> Record:
        """The record of one row; raises `RowError`."""
        return self.columns.record(self.values(raw), origin)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        table = self.table.to_json() if self.table else None
        return {"format": self.format, "columns": self.columns.to_json(), "table": table}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Parser:
        """The parser that `to_json` was asked of."""
        table = Table.from_json(known["table"]) if known["table"] else None
        return cls(known["format"], Columns.from_json(known["columns"]), table)


def decoded(raw: bytes) -> str:
    """UTF-8 without NUL; raises `RowError`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("", f"not UTF-8, byte 0x{raw[error.start]:02x} at {error.start} (want UTF-8)") from None
    if "\0" in text:
        raise RowError("", f"NUL character at column {text.index(chr(0)) + 1}")
    return text
