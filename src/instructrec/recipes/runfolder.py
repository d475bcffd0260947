"""The run folder: what `tune` leaves behind and everything else takes."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import EnvironmentFault, InputError
from ..inference.loading import RUN_FILE, is_run

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors")

# What a run writes before its first checkpoint.
_BEGUN = {"settings.json", "prompt.json", "metrics.jsonl", "checkpoints", "tensorboard"}
_REJECTED = re.compile(r"rejected(-\d+)?\.jsonl")  # one for each file of rows


class RunFolder:
    """Paths and logs of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    def check(self, resume: bool) -> None:
        """Raises InputError when the folder holds something else than a run to go on with; touches nothing."""
        if self.path.is_file():
            raise InputError(f"out: {self.path} is a file (want a folder)")
        if not resume and self.path.is_dir() and any(self.path.iterdir()) and not self._abandoned():
            what = "a finished run" if is_run(str(self.path)) else "files already"
            raise InputError(f"out: {self.path} holds {what}; choose another --out, or go on with --resume")
        if resume and not self.checkpoints.is_dir():
            raise InputError(f"resume: {self.path} holds no checkpoints to go on from")

    def _abandoned(self) -> bool:
        """True for what a run leaves that died before its first checkpoint: nothing in it is worth keeping."""
        names = {path.name for path in self.path.iterdir()}
        rejected = set(filter(_REJECTED.fullmatch, names))  # written before settings.json
        begun = rejected or "settings.json" in names
        return bool(begun) and names - rejected <= _BEGUN and not list(self.checkpoints.glob("step-*"))

    def make(self, resume: bool) -> None:
        """Make the folder where there is none. Raises EnvironmentFault when it can't be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume:
                self.metrics.unlink(missing_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"out: {self.path} can't be made: {error.strerror}") from error

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl: a whole line at a time, so that a reader never sees half of one."""
        line = json.dumps({key: _plain(value) for key, value in entry.items()}, ensure_ascii=False) + "\n"
        with open(self.metrics, "a", encoding="utf-8") as handle:
            handle.write(line)

    def entries(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; a line cut off by a crash is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.endswith("}")]

    def forget_after(self, step: int) -> None:
        """Drop log entries of steps that a resumed run takes again."""
        kept = [entry for entry in self.entries() if entry["step"] <= step]
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.metrics)


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


def surroundings(threads: int) -> dict[str, Any]:
    """Versions and machine facts that a result depends on; no host name, no path."""
    return {
        "instructrec": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads,
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
