"""Rows in: `read` turns a file into records; `splits` parts them, `consistency` looks at what they say."""

from .readers import read
from .records import Record, Rows, Turn

__all__ = ["Record", "Rows", "Turn", "read"]
