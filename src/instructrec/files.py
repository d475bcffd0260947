"""Writing files so that nothing a user has made is ever lost or half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a directory (a rename is only on disk once its parent is synced)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all: temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, _mode(0o666))  # mkstemp makes files that only the owner can read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync(path.parent)


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
    """Fill a temporary directory, then rename it to `final` in one step; on an error nothing is left."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield temporary
        os.chmod(temporary, _mode(0o777))
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        if final.exists():  # only ever replaces a folder that we wrote under the same name
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def cache_dir() -> Path:
    """Where downloaded and converted models are kept: $XDG_CACHE_HOME/instructrec or ~/.cache/instructrec."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "instructrec"
