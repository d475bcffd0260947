"""Signals that stop a run: at the next step edge, with a checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from .. import console
from ..errors import InstructRecError
from ..launch import launched

if TYPE_CHECKING:
    from ..training.processes import Processes

# A launcher passes a signal on to its processes, which may have had it from the terminal as well.
ECHO = 5.0  # seconds


class Interrupted(InstructRecError):
    """Stopped by a signal; `exit_code` is what the shell expects of that signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Signals:
    """What has come: the reason to stop, empty if none, and the exit code that goes with it."""

    reason = ""
    exit_code = 0
    at_once = False
    came = 0.0  # when the first one came to this process, in seconds of the monotonic clock

    def agreed(self, group: Processes) -> str:
        """The reason to stop, whichever process it came to: all of them take it over at the same step."""
        # Only what all have heard counts: a signal can come while they talk.
        heard = next((one for one in group.exchange((self.reason, self.exit_code)) if one[0]), None)
        if heard and not self.reason:
            self.reason, self.exit_code = heard
        return self.reason if heard else ""


@contextmanager
def signals() -> Iterator[Signals]:
    """Ctrl-C and SIGTERM stop at the next step edge with a checkpoint; a second one stops at once."""
    state = Signals()

    def handle(number: int, _: FrameType | None) -> None:
        first, state.came = not state.came, state.came or time.monotonic()
        if not first:
            if launched()[1] > 1 and time.monotonic() - state.came < ECHO:
                return
            state.reason = f"stopped by {signal.Signals(number).name} at once, without a checkpoint of this step"
            state.exit_code = 128 + number
            state.at_once = True
            raise KeyboardInterrupt  # no `except Exception` of a library stands in its way
        if state.reason:  # another process had it before
            return
        state.reason = f"stopped by {signal.Signals(number).name}"
        state.exit_code = 128 + number
        with suppress(RuntimeError):  # it may have come in the middle of another line
            console.note("stopping after this step (again: at once, without a checkpoint)")

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield state
    except KeyboardInterrupt:
        if not state.at_once:
            raise
        raise Interrupted(state.reason, state.exit_code) from None
    finally:
        for number, old in before.items():
            signal.signal(number, old)
