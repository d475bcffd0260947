"""A child process that is watched: what it runs, opens for writing, starts or connects to is reported.

    seen = watched(action, trap, allowed)   runs `action()` in a fork, with the modules that are imported already

Python tells its audit hooks of every code object run, file opened, process started and socket made, whatever library
asks for it; only what native code does by itself goes unseen.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/", "/proc/self/")


@dataclass
class Seen:
    """What a child did. code: what the action returned, or -1 and the traceback in `err`.  seconds: of processor time.
    events: what the hook objects to.  signal: what killed it, or 0."""

    code: Any = None
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    events: list[str] = field(default_factory=list)
    signal: int = 0


def _inside(path: Any, folder: Path) -> bool:
    if isinstance(path, str) and path.startswith("<"):  # `<string>`: code that a library makes of its own text
        return False
    with contextlib.suppress(TypeError, ValueError):
        return Path(os.path.realpath(os.fsdecode(path))).is_relative_to(folder)
    return False


def hook(trap: Path, allowed: Path, events: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that notes: code of the trap folder run or compiled, anything unpickled by name, processes, sockets,
    and writing outside `allowed`."""
    trap, allowed = Path(os.path.realpath(trap)), Path(os.path.realpath(allowed))

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "exec" and _inside(arguments[0].co_filename, trap):
            events.append(f"exec {arguments[0].co_filename}")
        elif event == "compile" and arguments[1] is not None and _inside(arguments[1], trap):
            events.append(f"compile {os.fsdecode(arguments[1])}")
        elif event in ("pickle.find_class", *_STARTS) or event.startswith("socket."):
            events.append(f"{event} {arguments!r:.200}")
        elif event == "ctypes.dlopen" and arguments[0] and _inside(arguments[0], trap):
            events.append(f"{event} {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path, flags = os.fsdecode(arguments[0]), arguments[2]
            writes = isinstance(flags, int) and flags & _WRITING
            if writes and not path.startswith(_HARMLESS) and not _inside(path, allowed):
                events.append(f"write {path}")
        elif event in CHANGES and isinstance(arguments[0], (str, bytes)) and not _inside(arguments[0], allowed):
            events.append(f"{event} {os.fsdecode(arguments[0])}")

    return note


def watched(action: Callable[[], Any], trap: Path, allowed: Path, seconds: float = 60.0) -> Seen:
    """Run `action` in a forked child under the hook; killed after `seconds` of wall time."""
    answer, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        try:
            result = _watched_here(action, trap, allowed)
            with os.fdopen(report, "w", encoding="utf-8", errors="backslashreplace") as handle:
                json.dump(result, handle)
        finally:
            os._exit(0)
    os.close(report)
    seen = Seen()
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with os.fdopen(answer, encoding="utf-8") as handle:
            text = handle.read()
        _, status = os.waitpid(child, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if os.WIFSIGNALED(status):
        seen.signal = os.WTERMSIG(status)
    return Seen(**json.loads(text)) if text else seen


def _watched_here(action: Callable[[], Any], trap: Path, allowed: Path) -> dict[str, Any]:
    # After a fork torch makes its pool of threads anew on first use, without a lock: two threads that come first at once,
    # as when weights are read by several, end in "Invalid thread pool!". This one comes first.
    torch.set_num_threads(torch.get_num_threads())
    sys.dont_write_bytecode = True  # Python's own cache of compiled modules is no fault of ours
    out, err, events = io.StringIO(), io.StringIO(), list[str]()
    code: Any = -1
    sys.addaudithook(hook(trap, allowed, events))
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = action()
        except BaseException:  # noqa: BLE001 (whatever happens in the child is the parent's to judge)
            traceback.print_exc()
    spent = time.process_time() - started
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": spent, "events": list(events)}
