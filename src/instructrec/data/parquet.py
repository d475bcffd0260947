"""Rows of a Parquet file, read by batches; what pictures and sounds hold is left in the file."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from .columns import MEDIA
from .pieces import Broken, Piece

BATCH = 256  # rows in memory at once
MEDIA_NAMES = {*MEDIA, *(f"{name}s" for name in MEDIA)}


def parquet_rows(handle: BinaryIO) -> Iterator[Piece]:
    """Each row as column -> plain value: `line` is its number from 1, `start` its row group. Raises `Broken`.

    Numbers of a class label (as `datasets` writes them) become its names; NaN, pandas' way to say nothing, is null.
    """
    import pyarrow
    from pyarrow import parquet

    number = 1
    try:
        file = parquet.ParquetFile(handle)
        names = _label_names(file.schema_arrow.metadata or {})
        columns, left = _columns(file)
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns):
                for place in range(batch.num_rows):
                    yield _row(batch, place, number, group, names, left)
                    number += 1
    # The last one: pyarrow decodes names, and a damaged schema may have any bytes there.
    except (pyarrow.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise Broken(number if number > 1 else 0, f"damaged Parquet ({reason[:200]})") from None


def _row(batch: Any, place: int, number: int, group: int, names: Mapping[str, list[str]], left: list[str]) -> Piece:
    row: dict[str, Any] = {}
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = values[place].as_py()
        except UnicodeDecodeError as error:
            at = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            return Piece(number, group, row, f"{column}: not UTF-8, {at} (want UTF-8)")
        except (ValueError, OverflowError) as error:  # a date beyond the year 9999
            return Piece(number, group, row, f"{column}: not readable ({error})")
        if column in names and isinstance(value, int):
            value = names[column][value] if 0 <= value < len(names[column]) else None
        row[column] = plain(value)
    row |= dict.fromkeys(left, b"")
    return Piece(number, group, row)


def plain(value: Any) -> Any:
    """A value as JSON could have it; bytes that are no text stay bytes."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, (datetime.timedelta, decimal.Decimal)) else repr(value)


def _columns(file: Any) -> tuple[list[str], list[str]]:
    """Leaves to read, and columns of media that hold nothing but bytes and are not read at all."""
    paths = [file.schema.column(place) for place in range(len(file.schema))]
    bytes_only = [
        leaf.path
        for leaf in paths
        if leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type == "NONE"
        and leaf.path.partition(".")[0].lower() in MEDIA_NAMES
    ]
    kept = [leaf.path for leaf in paths if leaf.path not in bytes_only]
    tops = {path.partition(".")[0] for path in kept}
    return kept, sorted({path.partition(".")[0] for path in bytes_only} - tops)


def _label_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, from what `datasets` writes into the file's schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
