"""The run folder: what `tune` leaves behind and everything else takes."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..environment import arithmetic_flags
from ..errors import EnvironmentFault, InputError
from ..files import disk_faults, make_folder, sync, write_text
from ..inference.loading import RUN_FILE, is_run
from .trackers import FOLDERS

if sys.platform != "win32":
    import fcntl

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors")

# What a run writes before its first checkpoint.
_BEGUN = {"settings.json", "prompt.json", "metrics.jsonl", "checkpoints", *FOLDERS.values()}
_REJECTED = re.compile(r"rejected(-\d+)?\.jsonl")  # one for each file of rows
LOCK = ".instructrec.lock"
# What a crash leaves of a file that was being written, under a name that only we give.
_TORN = re.compile(r"\.[\w-]+\.(json|jsonl|safetensors|html|md)\.[a-z0-9_]{8}")


class Lock:
    """One process at a time in a folder.

    The lock is the system's and goes with the process, however that ends; the file may stay after a kill, but it holds
    nothing back. Windows has no `flock`, and some network file systems refuse it: there, nothing is locked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / LOCK
        self._descriptor: int | None = None

    def take(self) -> None:
        """Wait for nobody. Raises EnvironmentFault: another process has the folder, or it can't be written to."""
        while sys.platform != "win32" and self._descriptor is None:
            try:  # not through a link: the file is emptied
                descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                raise EnvironmentFault(f"out: {self.folder} can't be written to: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 20).decode("ascii", "replace") or "of an unknown number"
                os.close(descriptor)
                text = f"out: {self.folder} is in use by process {owner}; wait for it to end, or choose another --out"
                raise EnvironmentFault(text) from None
            except OSError:  # a file system without locks
                pass
            if self._is_file_of(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                self._descriptor = descriptor
            else:  # its holder has removed it between our two calls
                os.close(descriptor)

    def _is_file_of(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.file), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the folder up and take the file away; nothing happens where nothing is held."""
        if self._descriptor is not None:
            self.file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


class RunFolder:
    """Paths and logs of one run. `close` it: until then no other process can use the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(path)
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    def close(self) -> None:
        """Let others have the folder."""
        self.lock.release()

    def check(self, resume: bool) -> None:
        """Take the lock of a folder that is there.

        Raises InputError when it holds something else than a run to go on with, EnvironmentFault when it is in use.
        """
        self._check(resume)
        if self.path.is_dir():
            self.lock.take()
            self._check(resume)  # whoever had the lock may have ended a run here

    def _check(self, resume: bool) -> None:
        if self.path.is_file():
            raise InputError(f"out: {self.path} is a file (want a folder)")
        if not resume and self._names() and not self._abandoned():
            what = "a finished run" if is_run(str(self.path)) else "files already"
            raise InputError(f"out: {self.path} holds {what}; choose another --out, or go on with --resume")
        if resume and not self.checkpoints.is_dir():
            raise InputError(f"resume: {self.path} holds no checkpoints to go on from")

    def _names(self) -> set[str]:
        """What the folder holds, the lock and torn files left out; nothing where there is no folder."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        return {name for name in names if name != LOCK and not _TORN.fullmatch(name)}

    def _abandoned(self) -> bool:
        """True for what a run leaves that died before its first checkpoint: nothing in it is worth keeping."""
        names = self._names()
        rejected = set(filter(_REJECTED.fullmatch, names))  # written before settings.json
        begun = rejected or "settings.json" in names
        return bool(begun) and names - rejected <= _BEGUN and not list(self.checkpoints.glob("step-*"))

    def make(self, resume: bool) -> None:
        """Make the folder where there is none, and take its lock.

        Raises EnvironmentFault when it can't be made or another process was faster, InputError when that one has ended.
        """
        try:
            make_folder(self.path)
            self.check(resume)
            if resume:  # it is not finished any more: nobody must take its old weights for the result
                (self.path / RUN_FILE).unlink(missing_ok=True)
            else:
                self.metrics.unlink(missing_ok=True)
            for path in list(self.path.iterdir()):
                if _TORN.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise EnvironmentFault(f"out: {self.path} can't be made: {error.strerror}") from error

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl: a whole line at a time, so that a reader never sees half of one.

        Raises EnvironmentFault when the disk does not take it.
        """
        line = json.dumps({key: _plain(value) for key, value in entry.items()}, ensure_ascii=False) + "\n"
        with disk_faults(f"{self.metrics} could not be written"), open(self.metrics, "a", encoding="utf-8") as handle:
            handle.write(line)

    def keep_log(self) -> None:
        """Put metrics.jsonl on disk. Comes before a checkpoint, which must not know of more steps than the log."""
        if self.metrics.is_file():
            with disk_faults(f"{self.metrics} could not be written"):
                sync(self.metrics)

    def keep(self) -> None:
        """Put on disk what was written into the folder. Comes before `run.json`, which says that all is there."""
        with disk_faults(f"{self.path} could not be written"):
            for path in self.path.iterdir():
                if path.is_file():
                    sync(path)
            sync(self.path)

    def entries(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; a line that a crash has cut off or left empty is none."""
        if not self.metrics.is_file():
            return []
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError):
                kept.append(json.loads(line))
        return kept

    def forget_after(self, step: int) -> None:
        """Drop log entries of steps that a resumed run takes again."""
        kept = [entry for entry in self.entries() if entry["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))


class OthersFolder(RunFolder):
    """The folder of a run whose first process writes it, as the other processes have it: they only read."""

    def check(self, resume: bool) -> None:
        """Left to the first process, as all of these."""

    make = check

    def log(self, entry: dict[str, Any]) -> None:
        """Nothing is written."""

    def forget_after(self, step: int) -> None:
        """Nothing is dropped."""


def free_folder(stem: str) -> Path:
    """runs/<stem>, or runs/<stem>-2, -3 … when that is taken."""
    first = Path("runs") / stem
    number, path = 1, first
    while path.exists():
        number += 1
        path = first.with_name(f"{stem}-{number}")
    return path


def last_folder(stem: str) -> Path:
    """The newest of the folders that `free_folder` gave out for this name."""
    taken = [
        path for path in Path("runs").glob(f"{stem}*") if path.name == stem or path.name[len(stem) + 1 :].isdigit()
    ]
    return max(taken, key=lambda path: path.stat().st_mtime, default=Path("runs") / stem)


def surroundings(threads: int, processes: int = 1) -> dict[str, Any]:
    """Versions and machine facts that a result depends on; no host name, no path."""
    return {
        "instructrec": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads,
        "processes": processes,
        "processor_flags": arithmetic_flags(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _plain(value: Any) -> Any:
    """Floats short enough to read; NaN and infinity, which JSON has no word for, as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


__all__ = ["RUN_FILE", "RunFolder", "free_folder", "is_run", "last_folder", "surroundings"]
