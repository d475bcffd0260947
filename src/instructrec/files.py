"""Writing files so that nothing a user has made is ever lost or half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import EnvironmentFault


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a directory (a rename is only on disk once its parent is synced).

    Raises OSError. A failed fsync must never be tried again: the kernel has dropped the bytes, and would say yes.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems have no fsync of folders
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; their entries are on disk when this returns, without which all is lost."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A handle on a temporary file beside `path`; after the block it is fsynced and takes the place of `path`."""
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, _mode(0o666))  # mkstemp makes files that only the owner can read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.unlink(name)
        raise
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write whole or not at all: temporary file beside it, fsync, rename, fsync of the folder."""
    with _replacing(path) as handle:
        handle.write(content)


def write_text(path: Path, text: str) -> None:
    """The same for text, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def place(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; what `target` held before is there until the copy is on disk."""
    with open(source, "rb") as given, _replacing(target) as handle:
        shutil.copyfileobj(given, handle, 1 << 20)


def _mode(full: int) -> int:
    """The mode that `open` (0o666) or `mkdir` (0o777) would give under the user's umask."""
    mask = os.umask(0o077)  # it can only be read by setting it; strict for the moment, since other threads see it
    os.umask(mask)
    return full & ~mask


def write_json(path: Path, value: Any) -> None:
    """JSON with stable layout; refuses NaN, which other readers of JSON refuse too."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Fill a temporary directory, fsync all of it, then rename it to `final`; on an error nothing is left.

    A directory that is there already is first set aside as `<name>.old` and deleted last, so that at every moment one
    of the two is whole on disk: a crash between the renames leaves the old one under that name.
    """
    make_folder(final.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield temporary
        os.chmod(temporary, _mode(0o777))
        for folder, _, names in os.walk(temporary, onerror=_refuse):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        old = final.with_name(f"{final.name}.old")
        if final.exists():  # only ever replaces a folder that we wrote under the same name
            if old.exists():
                discard(old)
            os.rename(final, old)
        os.rename(temporary, final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if old.exists():
        discard(old)


def discard(folder: Path) -> None:
    """Delete a folder so that a crash never leaves half of it under its name: hidden first, then emptied."""
    hidden = folder.with_name(f".{folder.name}.gone")
    if hidden.exists():  # from a crash in here
        shutil.rmtree(hidden)
    os.rename(folder, hidden)
    sync(folder.parent)  # also puts the rename of a new folder on disk before the one that it replaces goes
    shutil.rmtree(hidden)


def _refuse(error: OSError) -> None:
    # os.walk passes over a folder that it can't list; its files would be renamed into place without a sync.
    raise error


@contextlib.contextmanager
def disk_faults(what: str, more: str = "") -> Iterator[None]:
    """Errors of the operating system inside the block become EnvironmentFault `<what>: <its words><more>`.

    safetensors, written in Rust, has an error class of its own and the number in its text: "... (os error 28)".
    """
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        reason = error.strerror if isinstance(error, OSError) else number and os.strerror(int(number[1]))
        if not reason:
            raise
        raise EnvironmentFault(f"{what}: {reason}{more}") from error


def cache_dir() -> Path:
    """Where downloaded and converted models are kept: $XDG_CACHE_HOME/instructrec or ~/.cache/instructrec."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "instructrec"
