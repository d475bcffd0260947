"""Reading YAML that a user wrote: nodes with their lines, every scalar as the text that stands there.

YAML 1.1 would make text of `1e-4`, a truth value of `no` and 8 of `010`; the labels of half the data sets of the field
are yes and no.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import DataError, InputError, Problem, nearest

MAX_BYTES = 1 << 20
MAX_DEPTH = 16


class _Refused(yaml.YAMLError):
    """What YAML allows and we do not."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Composes nodes only: no alias (a few of them can expand to gigabytes), no tag, no deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Refused(line, "anchors (&) and aliases (*) are not allowed; quote the text if it starts like one")
        if getattr(event, "tag", None):
            raise _Refused(line, "tags (!) are not allowed; quote the text if it starts like one")
        if self.depth >= MAX_DEPTH:
            raise _Refused(line, f"nested too deep (want at most {MAX_DEPTH} levels)")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _text_of(file: Path, what: str) -> str:
    """The file's text; `InputError` naming it when it can't be one of ours."""
    if not file.exists():
        near = nearest(file.name, [path.name for path in file.parent.glob("*.y*ml")])
        raise InputError(f"{file}: no such file" + (f", did you mean '{file.parent / near}'?" if near else ""))
    if not file.is_file():  # opening a named pipe would wait for ever
        raise InputError(f"{file}: not a file" if not file.is_dir() else f"{file}: is a folder")
    try:
        with open(file, "rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{file}: too large for {what} (got {file.stat().st_size} bytes, want at most {MAX_BYTES})")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"not UTF-8, byte 0x{raw[error.start]:02x} at {error.start}"
        raise DataError([Problem(str(file), line, "", reason)]) from error


def compose(file: Path, what: str) -> yaml.Node | None:
    """The root node of a YAML file, None where it holds nothing; what: for messages, `settings`.

    Raises InputError naming file and line when it is not YAML that we take.
    """
    text, name = _text_of(file, what), str(file)
    tabs = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line)]
    if tabs:
        raise DataError([Problem(name, number, "", "tab in the indentation (want spaces)") for number in tabs])
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except _Refused as error:
        raise DataError([Problem(name, error.line, "", str(error))]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = "tab before a value (want a space)" if "'\\t'" in str(error.problem) else f"not YAML: {error.problem}"
        raise DataError([Problem(name, mark.line + 1 if mark else 0, "", reason)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DataError([Problem(name, line, "", f"character U+{error.character:04X} is not allowed")]) from error
    empty = root is None or (isinstance(root, yaml.ScalarNode) and not root.value)
    return None if empty else root


def tree(file: Path, what: str) -> Any:
    """The content of a YAML (or JSON) file as dicts, lists and texts; {} where it holds nothing.

    Raises InputError, also for a key that is given twice or is no text.
    """
    root = compose(file, what)
    return {} if root is None else _plain(root, str(file))


def _plain(node: yaml.Node, file: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, file) for item in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise DataError([Problem(file, line, "", "a list or section cannot be a name")])
        if key.value in found:
            raise DataError([Problem(file, line, key.value, "given twice")])
        found[key.value] = _plain(value, file)
    return found
