"""What the terminal shows: results on stdout; warnings, notes and progress on stderr, so that stdout can be piped.

rich is imported when something is first shown on a terminal; elsewhere the output is plain text.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from .launch import launched

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

PLAIN_EVERY = 10.0  # seconds between two lines of progress where there is no terminal

_live: Progress | None = None  # the bars on the terminal now; what is said meanwhile goes above them
_depth = 0  # jobs within jobs
_known = True  # whether the first process knows of errors here; before it can be told, it meets the same


def printable(text: str) -> str:
    """Control characters (an escape sequence in a row of data could rewrite the screen) as visible escapes."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


def say(text: str, style: str = "") -> None:
    """A result, on stdout; `style` is rich's, such as `bold green`. Brackets in the text are only brackets."""
    _show(text, style, sys.stdout)


def note(text: str) -> None:
    """What is being done, on stderr."""
    _show(text, "dim", sys.stderr)


def warn(text: str) -> None:
    """What the user should look at although the work goes on, on stderr."""
    _show(f"warning: {text}", "yellow", sys.stderr)


def fail(text: str) -> None:
    """Why the work ended, on stderr."""
    if _silent() and not _known:
        print(printable(f"process {launched()[0]}: {text}"), file=sys.stderr, flush=True)
        return
    _show(text, "red", sys.stderr)


def others_know(known: bool = True) -> None:
    """Whether the first process shows the error that ends this one; where it can't, this one does."""
    global _known
    _known = known


def write(piece: str) -> None:
    """A piece of an answer, on stdout, as it comes; unaltered unless a terminal would act on it."""
    sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def marked(text: str, on: bool) -> None:
    """A piece of text without a line break after it, on stdout; marked green on a terminal and ⟦so⟧ elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"⟦{text}⟧" if on else text)
        return
    from rich.text import Text

    _console(sys.stdout).print(Text(printable(text), style="bold green" if on else "dim"), soft_wrap=True, end="")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Aligned columns on stdout; a cell is as wide as it looks (Chinese characters take two places)."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if _silent():
        return
    if sys.stdout.isatty():
        from rich.table import Table
        from rich.text import Text

        shown = Table(*headers, title=title or None, title_justify="left", header_style="bold")
        for row in cells:
            shown.add_row(*(Text(cell) for cell in row))
        _console(sys.stdout).print(shown)
        return
    from rich.cells import cell_len

    lines = [list(headers), *cells]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(headers))]
    if title:
        say(title)
    for line in lines:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        say("  ".join(padded).rstrip())


class Bar:
    """How far a job is. `advance` is cheap enough for every step."""

    def __init__(self, total: int | None, label: str, unit: str, done: int) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = done
        self._before = done  # steps of an earlier run count as done, but not in the rate
        self._started = time.monotonic()
        self._fields: dict[str, object] = {}

    def advance(self, n: int = 1, **fields: object) -> None:
        """`n` more are done; fields (`loss=1.23`) stand beside the bar until they are given again."""
        self.done += n
        self._fields.update(fields)
        self._refresh()

    def _refresh(self) -> None:
        raise NotImplementedError

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units a second, over the whole job."""
        return (self.done - self._before) / max(self.elapsed, 1e-9)

    @property
    def rate_text(self) -> str:
        """`3.1 steps/s`, or `12 s a step` where it is slow."""
        unit = self.unit or "items"
        if 0 < self.rate < 0.5:
            return f"{1 / self.rate:.1f} s for one of the {unit}"
        return f"{self.rate:,.0f} {unit}/s" if self.rate >= 100 else f"{self.rate:.1f} {unit}/s"

    @property
    def fields_text(self) -> str:
        """`loss 1.23, learning_rate 0.0001`."""
        return ", ".join(f"{name} {_number(value)}" for name, value in self._fields.items())

    def summary(self, ended: str = "") -> str:
        """One line for a log; `ended` is `done`, `stopped` or empty while it runs."""
        count = f"{self.done}/{self.total}" if self.total is not None else str(self.done)
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        parts = [
            f"{self.label}: {count} {self.unit}".rstrip() + share,
            self.rate_text,
            f"{clock(self.elapsed)} elapsed",
        ]
        if self.total is not None and self.rate > 0 and not ended:
            parts.append(f"{clock(max(self.total - self.done, 0) / self.rate)} left")
        return ", ".join(filter(None, [*parts, self.fields_text, ended]))


class _PlainBar(Bar):
    """A line now and then, for logs."""

    _shown = 0.0

    def _refresh(self) -> None:
        if self.elapsed - self._shown >= PLAIN_EVERY:
            self._shown = self.elapsed
            note(self.summary())


class _RichBar(Bar):
    """A row among the bars on the terminal."""

    def __init__(self, total: int | None, label: str, unit: str, done: int) -> None:
        super().__init__(total, label, unit, done)
        assert _live is not None
        self._task = _live.add_task(label, total=total, completed=done, unit=unit, rate="", more="")

    def _refresh(self) -> None:
        assert _live is not None
        _live.update(self._task, completed=self.done, total=self.total, rate=self.rate_text, more=self.fields_text)

    def remove(self) -> None:
        """Take the row off the terminal."""
        assert _live is not None
        _live.remove_task(self._task)


@contextlib.contextmanager
def progress(total: int | None, label: str, unit: str = "", done: int = 0) -> Iterator[Bar]:
    """Show how a job goes on: share done, rate, time elapsed and left, and any fields.

    `with progress(total, "Tuning", unit="steps") as bar: bar.advance(1, loss=1.23)`. `done` of them were done
    earlier. On a terminal it is a bar (a job inside a job gets its own row, which goes when it ends); elsewhere it is
    a line at most every ten seconds. One line stays at the end, unless it was a short job inside another.
    """
    global _depth
    on_terminal = sys.stderr.isatty() and not _silent()
    with _bars() if on_terminal else contextlib.nullcontext():
        bar: Bar = (_RichBar if on_terminal else _PlainBar)(total, label, unit, done)
        ended = "stopped"
        _depth += 1
        try:
            yield bar
            ended = "done"
        finally:
            _depth -= 1
            if isinstance(bar, _RichBar):
                bar.remove()
            if not _depth or bar.elapsed >= PLAIN_EVERY:
                note(bar.summary(ended))


def track(iterable: Iterable[T], label: str, unit: str = "", total: int | None = None) -> Iterator[T]:
    """The items of `iterable`, with progress; the total is its length where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(total, label, unit) as bar:
        for item in iterable:
            yield item
            bar.advance()


def clock(seconds: float) -> str:
    """`0:07`, `12:34` or `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """The one live display of the terminal: opened by the outermost job."""
    global _live
    if _live is not None:
        yield
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    text: Callable[[str], Any] = lambda template: TextColumn(template, markup=False)  # noqa: E731
    columns = [text("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), text("{task.fields[unit]}")]
    columns += [text("{task.fields[rate]}"), TimeElapsedColumn(), text("left"), TimeRemainingColumn()]
    columns.append(text("{task.fields[more]}"))
    # rich would send a piped stdout to the terminal too
    with Progress(*columns, console=_console(sys.stderr), transient=True, redirect_stdout=sys.stdout.isatty()) as _live:
        try:
            yield
        finally:
            _live = None


def _silent() -> bool:
    """Of several processes only the first is heard."""
    return launched()[0] > 0


def _console(stream: TextIO) -> Any:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _show(text: str, style: str, stream: TextIO) -> None:
    if _silent():
        return
    text = printable(text)
    if not stream.isatty():
        print(text, file=stream, flush=True)
        return
    from rich.text import Text

    console = _live.console if _live is not None else _console(stream)
    console.print(Text(text, style=style), soft_wrap=True)
