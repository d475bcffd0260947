"""A disk that fails at the N-th call, and what it holds after a crash.

`Disk` stands between the program and the file system while its block lasts. It counts every call, can let one fail or
let the machine die there, and keeps a model of the disk: of each file the bytes at its last fsync, of each folder its
entries after every change since its last fsync. `image` writes down what could be found after a power cut: bytes that
were not synced are gone, and of each folder some earlier state may have survived.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

CALLS = ("open", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod", "scandir", "listdir")
IMAGES = ("kept", "lost", "empty", "half", "mixed 1", "mixed 2")
REAL = {name: getattr(os, name) for name in (*CALLS, "fsync")}
REAL_OPEN, REAL_SERIALIZE = io.open, safetensors.torch.serialize_file


class Crash(BaseException):
    """The machine is off: from here on the disk does nothing that anybody asks of it."""


class Disk:
    """fail_at: number of the call that fails, from 1. error: its errno, or None for a crash. ever: all later ones too."""

    def __init__(self, root: Path, fail_at: int = 0, error: int | None = None, ever: bool = False) -> None:
        self.root, self.fail_at, self.error, self.ever = root, fail_at, error, ever
        self.calls: list[str] = []
        self.failed = 0
        self.dead = False
        self.bytes: dict[int, bytes] = {}  # inode -> content at the last fsync
        self.entries: dict[int, list[dict[str, int]]] = {}  # inode of a folder -> its states since the last fsync
        self.dropped: set[int] = set()  # an fsync failed: the kernel calls the pages clean, and a second one lies
        self.twice: list[int] = []  # inodes with an fsync after a failed one
        self.pins: dict[int, int] = {}  # inode -> descriptor, so that no number is given out twice
        self.modelled = error is None  # after an error the files themselves are looked at
        self._observe()
        for folder, _, names in os.walk(root) if self.modelled else ():
            for name in names:
                path = Path(folder, name)
                self.bytes[path.stat().st_ino] = path.read_bytes()
        for states in self.entries.values():
            del states[:-1]

    def _pin(self, path: str, inode: int) -> None:
        if inode not in self.pins:
            self.pins[inode] = REAL["open"](path, os.O_RDONLY)

    def _observe(self) -> None:
        """Note how each folder looks now."""
        stack = [str(self.root)] if self.modelled else []
        while stack:
            folder = stack.pop()
            inode = os.stat(folder).st_ino
            self._pin(folder, inode)
            now = {}
            with REAL["scandir"](folder) as found:
                for entry in found:
                    now[entry.name] = entry.inode()
                    self._pin(entry.path, entry.inode())
                    if entry.is_dir():
                        stack.append(entry.path)
            states = self.entries.setdefault(inode, [{}])
            if states[-1] != now:
                states.append(now)

    def _tick(self, name: str, half: Callable[[], Any] = lambda: None) -> None:
        """Count a call; raise if it is the one, after having done half of it."""
        if self.dead:
            raise Crash
        self.calls.append(name)
        place = len(self.calls)
        if self.fail_at and (place == self.fail_at or (self.ever and place > self.fail_at)):
            self.failed += 1
            half()
            if self.error is None:
                self.dead = True
                raise Crash
            raise OSError(self.error, os.strerror(self.error))

    def _plain(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._tick(name)
            result = REAL[name](*args, **kwargs)
            if name not in ("scandir", "listdir"):
                self._observe()
            return result

        return call

    def _fsync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        if inode in self.dropped:
            self.twice.append(inode)
        self._tick("fsync", lambda: self.dropped.add(inode))
        if inode in self.dropped:
            return
        self._observe()
        if inode in self.entries:
            del self.entries[inode][:-1]
        elif inode in self.pins:
            self.bytes[inode] = os.pread(self.pins[inode], os.fstat(descriptor).st_size, 0)

    def _serialize(self, tensors: Any, filename: Any, metadata: Any = None) -> None:
        def half() -> None:
            REAL_SERIALIZE(tensors, filename, metadata=metadata)
            os.truncate(filename, os.path.getsize(filename) // 2)

        try:
            self._tick("serialize", half)
        except OSError as error:
            text = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(text) from None
        REAL_SERIALIZE(tensors, filename, metadata=metadata)
        self._observe()

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """As `open`, with every read and write counted. Where the test's own machinery reads, nothing changes."""
        self._tick("open")
        raw = _Raw(self, file, mode.replace("t", "").replace("b", ""), closefd, opener)
        self._observe()
        buffer: Any = io.BufferedWriter(raw) if raw.writable() else io.BufferedReader(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    @contextlib.contextmanager
    def between(self) -> Iterator[Disk]:
        """Stand between the program and the file system."""
        try:
            for name in CALLS:
                setattr(os, name, self._plain(name))
            os.fsync = self._fsync
            builtins.open = io.open = self._opened  # type: ignore[assignment]
            safetensors.torch.serialize_file = self._serialize
            yield self
        finally:
            for name, real in REAL.items():
                setattr(os, name, real)
            builtins.open = io.open = REAL_OPEN
            safetensors.torch.serialize_file = REAL_SERIALIZE
            self._observe()

    def close(self) -> None:
        """Let go of the inodes."""
        for descriptor in self.pins.values():
            os.close(descriptor)
        self.pins.clear()

    def image(self, target: Path, kind: str) -> Path:
        """What a power cut now would leave, under `target`.

        kept: everything.  lost: only what was synced.  empty, half: all names, but of bytes that were not synced none
        or half.  mixed: of each folder and file by chance an earlier or the present state.
        """
        draw = random.Random(f"{kind} {len(self.calls)}")

        def state(inode: int) -> dict[str, int]:
            states = self.entries[inode]
            return states[0] if kind == "lost" else draw.choice(states) if kind.startswith("mixed") else states[-1]

        def content(inode: int) -> bytes:
            now = os.pread(self.pins[inode], os.fstat(self.pins[inode]).st_size, 0)
            synced = self.bytes.get(inode, b"")
            if kind == "kept":
                return now
            if kind == "half" and now != synced:
                return now[: len(now) // 2]
            return draw.choice((now, synced)) if kind.startswith("mixed") else synced

        def write(inode: int, path: Path) -> None:
            if inode in self.entries:
                path.mkdir()
                for name, child in state(inode).items():
                    write(child, path / name)
            else:
                path.write_bytes(content(inode))

        shutil.rmtree(target, ignore_errors=True)
        write(os.stat(self.root).st_ino, target)
        return target


class _Raw(io.FileIO):
    def __init__(self, disk: Disk, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        self._disk = disk
        super().__init__(file, mode, closefd, opener)

    def write(self, data: Any) -> int:
        if self._disk.dead:
            return len(data)  # what a buffer holds back when the machine dies goes nowhere
        self._disk._tick("write", lambda: super(_Raw, self).write(bytes(data)[: len(data) // 2]))
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self._disk._tick("read")
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._disk._tick("read")
        return super().readall()
