"""Several processes of one run, as a launcher would start them.

They are forked by a server that has imported the libraries and computed nothing. Where they meet is a port that this
process holds, as `torchrun` does it: none can be taken by another program in between.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

PATIENCE = 240  # seconds; a busy machine can be slow

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["instructrec.recipes.tune", "instructrec.training.loop", "accelerate", "peft", "transformers", "instructrec.cli"]
)


class Ranks:
    """`count` processes that call `work(*arguments)`; what it returns, and what they print, is in `folder`."""

    def __init__(self, folder: Path, work: Callable[..., Any], *arguments: Any, count: int = 2, **env: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **env,
        }
        self.processes: list[BaseProcess] = []
        for rank in range(count):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _server.Process(target=_main, args=(own, folder / str(rank), work, arguments), daemon=True)
            process.start()
            self.processes.append(process)

    def codes(self) -> list[int | None]:
        """Exit codes by rank, -9 for a process that was killed. Fails when one does not end."""
        for process in self.processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        assert None not in codes, f"a process does not end: {codes}\n{self.printed(0)}\n{self.printed(1)}"
        return codes

    def results(self) -> list[Any]:
        """What `work` returned, by rank."""
        codes = self.codes()
        assert codes == [0] * len(codes), "\n".join(self.printed(rank) for rank in range(len(codes)))
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in range(len(codes))]

    def printed(self, rank: int) -> str:
        """What a process has printed."""
        return (self.folder / f"{rank}.txt").read_text(encoding="utf-8")


def _main(env: dict[str, str], path: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ.update(env)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(path.with_suffix(".txt"), "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    try:
        result = work(*arguments)
    except Exception:  # noqa: BLE001 (whatever it is, the parent shows it)
        traceback.print_exc()
        raise SystemExit(99) from None
    path.with_suffix(".json").write_text(json.dumps(result))


__all__ = ["PATIENCE", "Ranks"]
