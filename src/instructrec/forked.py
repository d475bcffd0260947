"""Work in parts, each in a forked process of its own, the first in this one: they leave files, nothing else passes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import EnvironmentFault


def processes() -> int:
    """How many processes can work at once; 1 where forking is not safe."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def side_by_side(what: str, folder: Path, parts: Sequence[Callable[[], None]]) -> None:
    """Do all parts. Raises what the first part raises, and EnvironmentFault, which begins with `what`, when another
    part ended early; its reason lies in `folder` for a while."""
    children = []
    for number, part in enumerate(parts[1:], 1):
        sys.stdout.flush(), sys.stderr.flush()
        child = os.fork()
        if child == 0:
            try:
                part()
                os._exit(0)
            except BaseException as error:  # noqa: BLE001  told by the file, since nothing may be raised past a fork
                (folder / f"error-{number}").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
                os._exit(1)
        children.append(child)
    try:
        parts[0]()
    finally:
        states = [os.waitpid(child, 0)[1] for child in children]
    for number, state in enumerate(states, 1):
        if state:
            told = folder / f"error-{number}"
            reason = told.read_text(encoding="utf-8") if told.exists() else "it was killed"
            raise EnvironmentFault(f"{what}: a process ended early ({reason})")
