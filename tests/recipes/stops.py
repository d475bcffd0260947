"""Runs that are stopped at a step, what was really computed in them, and comparing what they leave."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import entries, load

from instructrec.training import loop

# 22 steps of three rows each, the last of an epoch too; every one draws dropout.
EXACT: dict[str, Any] = {
    "lora": {"dropout": 0.1}, "epochs": 2.5, "eval_every": 4, "accumulation": 3, "batch_rows": 1,
}  # fmt: skip
STEPS = 22


def signalled(monkeypatch: pytest.MonkeyPatch, at: int, *numbers: int) -> None:
    """This process gets the signals while step `at` runs."""
    step = loop.Training._step

    def send(self: Any, number: int) -> Any:
        entry = step(self, number)
        for signal_number in numbers if number + 1 == at else ():
            os.kill(os.getpid(), signal_number)
        return entry

    monkeypatch.setattr(loop.Training, "_step", send)


@contextmanager
def counted() -> Iterator[list[Any]]:
    """Each step that is really taken: its number, rows and loss in full."""
    taken: list[Any] = []
    step = loop.Training._step

    def count(self: Any, number: int) -> Any:
        entry = step(self, number)
        taken.append((number + 1, self.outcome.row_log[-1], entry["loss"], entry["grad_norm"]))
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_step", count)
        yield taken


def shaken(number: int) -> None:
    """Random generators as another process would have them."""
    torch.manual_seed(number)
    random.seed(number)


def same_result(one: Path, other: Path) -> None:
    """Two run folders hold the same weights, optimizer, random states and log."""
    final = f"checkpoints/step-{STEPS}/optimizer.safetensors"
    for file in ("adapter_model.safetensors", final, "split.json", "prompt.json", "settings.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert figures(one) == figures(other)
    states = [load(folder / f"checkpoints/step-{STEPS}/state.json") for folder in (one, other)]
    for state in states:
        del state["outcome"]["seconds"], state["python_random"]  # nothing draws from the latter, so nothing seeds it
    assert states[0] == states[1]  # monitor and totals


def figures(folder: Path) -> list[Any]:
    """The log without times."""
    dropped = ("seconds", "tokens_per_second")
    return [{key: value for key, value in entry.items() if key not in dropped} for entry in entries(folder)]


def damaged(checkpoint_folder: Path) -> str:
    """Cut the last byte of the weights off; returns what is said of them."""
    file = checkpoint_folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return f"{file}: sha256 differs from the manifest, the checkpoint is damaged"
