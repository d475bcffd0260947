"""Where rows are: a file, a folder or a pattern to files; what is no readable file is refused before it is opened."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
from itertools import islice
from pathlib import Path

from ..errors import DataError, Problem, nearest
from .hub import fetch, hub_id
from .streams import PACKED, SUFFIXES, WANTED


def files_of(source: str | os.PathLike[str], offline: bool = False) -> list[tuple[str, str]]:
    """Name (to be shown) and path of each file of a source, in order; raises `DataError`.

    A folder stands for the files in it (not in folders below) that end as rows do, a pattern (`*`, `?`, `**`) for
    those that it fits, and `owner/name` that is no file for a dataset of the hub.
    """
    name = os.fspath(source)
    if "\0" not in name and os.path.isdir(name):
        try:
            found = sorted(entry.path for entry in os.scandir(name) if entry.is_file() and is_rows_file(entry.name))
        except OSError as error:
            raise _fault(name, f"not readable: {error.strerror}") from None
        if not found:
            raise _fault(name, f"no files of rows in this folder (want {WANTED})")
        return [(printable(path), path) for path in found]
    if glob.has_magic(name) and not os.path.lexists(name):
        found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not found:
            raise _fault(name, "no file has such a name")
        return [(printable(path), path) for path in found]
    if wanted := hub_id(name):
        return fetch(wanted, offline)
    return [(printable(name), name)]


def size_of(found: list[tuple[str, str]]) -> int:
    """Bytes of files as `files_of` names them; what can't be looked at has none."""
    total = 0
    for _, path in found:
        with contextlib.suppress(OSError, ValueError):
            total += os.stat(path).st_size
    return total


def is_rows_file(name: str) -> bool:
    """Whether a file in a folder ends as a file of rows does, compressed or not; hidden ones do not count."""
    path = Path(name.lower())
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return suffix in SUFFIXES and not name.startswith(".")


def printable(name: str) -> str:
    """A path as typed, but always printable."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_path(path: str) -> None:
    """Refuse what is no readable file before it is opened: opening a named pipe would wait for a writer."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise _fault(path, _nearby(Path(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        loop = "symbolic links in a loop" if getattr(error, "errno", 0) == errno.ELOOP else ""
        raise _fault(path, loop or f"not readable: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        got = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise _fault(path, f"not a file (got {got}, want {WANTED})")


def _fault(path: str, reason: str) -> DataError:
    return DataError([Problem(printable(path), 0, "", reason)])


def _nearby(path: Path) -> str:
    """Why a path leads nowhere, with the nearest name that does exist."""
    if path.is_symlink():
        return f"no such file (a symbolic link to {os.readlink(path)}, which is missing)"
    if not path.parent.is_dir():
        return f"no such file (there is no folder {path.parent})"
    try:
        with os.scandir(path.parent) as entries:
            match = nearest(
                path.name, [entry.name for entry in islice(entries, 5000) if not entry.is_dir(follow_symlinks=False)]
            )
    except OSError:
        match = None
    return f"no such file, did you mean '{match}'?" if match else "no such file"
