"""The errors a user can cause, and the one-line form they are shown in.

Everything that is the user's to fix is an `InputError` (exit code 2) or an `EnvironmentFault` (exit code 3);
any other exception that reaches the command line is a bug of ours (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN = 20  # problems printed before the rest is only counted


class InstructRecError(Exception):
    """Base of all errors a user can cause; `str()` of it is what the terminal shows."""

    exit_code = 1


class InputError(InstructRecError):
    """Bad input: a row, a setting, a file that is not what it should be."""

    exit_code = 2


class EnvironmentFault(InstructRecError):
    """The machine is in the way: disk, network, a missing package, a busy port."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault at one place: `file:line: field: reason`. `line` counts from 1; 0 means the whole file."""

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.reason}" if self.field else f"{place}: {self.reason}"


class DataError(InputError):
    """Many problems at once: all counted, the first `shown` printed."""

    def __init__(
        self, problems: Sequence[Problem], total: int | None = None, advice: str = "", shown: int = SHOWN
    ) -> None:
        self.problems = list(problems)
        self.total = len(self.problems) if total is None else total
        lines = [str(problem) for problem in self.problems[:shown]]
        if self.total > shown:
            lines.append(f"… and {self.total - shown} more ({self.total} problems in all)")
        if advice:
            lines.append(advice)
        super().__init__("\n".join(lines))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like `name`, or None when none is near."""
    by_lower = {option.lower(): option for option in known}
    match = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return by_lower[match[0]] if match else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` when a known name is near, otherwise the list of known names."""
    known = sorted(known)
    match = nearest(name, known)
    return f"did you mean '{match}'?" if match else "known: " + ", ".join(known)


def path_problem(text: str) -> str:
    """What keeps `text` from naming a file or a model on any file system; '' if nothing does."""
    if not text.strip():
        return "is empty (want a name or path)"
    if "\0" in text:
        return "holds a NUL character"
    try:
        longest = max(len(part.encode()) for part in text.replace("\\", "/").split("/"))
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return f"a name of {longest} bytes is too long (want at most 255)" if longest > 255 else ""
