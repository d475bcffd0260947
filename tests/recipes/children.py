"""Real processes that run the command line and are interrupted or killed.

They are forked by a server that has imported the libraries and computed nothing: one import for all, and a fork of this
process would break once it holds a device.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

PATIENCE = 240  # seconds; a busy machine can be slow
BEGUN = "a step has begun"  # printed by the child

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["instructrec.recipes.tune", "accelerate", "peft", "transformers", "instructrec.cli"])


def start(arguments: list[str], printed: Path, slow: float = 0.0, kill_at_sync: int = 0) -> BaseProcess:
    """Run `instructrec` with these arguments in a child; what it prints goes to a file.

    slow: seconds that each step after the fifth is made to last.  kill_at_sync: SIGKILL comes instead of this fsync, counted from 1.
    """
    process = _server.Process(target=_main, args=(arguments, str(printed), slow, kill_at_sync), daemon=True)
    process.start()
    return process


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Wait until something is the case; fails when it takes too long, or when the child has ended before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end and process.is_alive(), "the child has not come so far"
        time.sleep(0.005)


def ended(process: BaseProcess) -> int:
    """The exit code of a child, -9 for one that was killed."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the child does not end"
    return process.exitcode


def _main(arguments: list[str], printed: str, slow: float, kill_at_sync: int) -> None:
    import torch

    from instructrec import cli
    from instructrec.training import loop

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(printed, "w", encoding="utf-8")  # noqa: SIM115 (it ends with the process)
    step, fsync, calls = loop.Training._step, os.fsync, iter(range(1, 1 << 30))

    def slowly(self: loop.Training, number: int) -> dict[str, object]:
        print(BEGUN, flush=True)
        time.sleep(slow if number >= 5 else 0)
        return step(self, number)

    def killing(descriptor: int) -> None:
        if next(calls) == kill_at_sync:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    loop.Training._step = slowly  # type: ignore[method-assign]
    os.fsync = killing
    sys.exit(cli.main(arguments))
