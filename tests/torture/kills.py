"""Save checkpoints in a child process, kill it at a random moment, look at what is left; again and again.

`python tests/torture/kills.py FOLDER KILLS SEED` prints one JSON object for each kill, and a traceback if anything a
child had finished is gone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from instructrec.training import checkpoint

LONGEST = 0.3  # seconds that a child has at most, or the time of five saves on a machine that is slower than that


def made() -> tuple[Any, Any]:
    """A model of one layer and its optimizer."""
    model = torch.nn.Linear(128, 128, bias=False)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def restored(folder: Path) -> tuple[Any, Any, int]:
    """Model, optimizer and step of the newest checkpoint, after making sure that it is whole and of one piece."""
    model, optimizer = made()
    found = checkpoint.checkpoints(folder)
    if not found:
        return model, optimizer, 0
    checkpoint.verify(found[-1])
    model.load_state_dict(load_file(found[-1] / "model.safetensors"))
    state = checkpoint.restore(found[-1], optimizer, ["weight"])
    assert state["sum"] == float(model.weight.detach().double().sum())
    assert int(optimizer.state[model.weight]["step"]) == state["step"]
    return model, optimizer, state["step"]


def work(folder: Path, say: int, most: int | None = None) -> None:
    """Train and save, without end unless told; the start, and each step that is safe, is said to the parent."""
    model, optimizer, step = restored(folder)
    os.write(say, b"0\n")
    while most is None or step < most:
        model(torch.ones(1, 128)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        for _ in range(2 if step % 3 == 0 else 1):  # a run that fell back comes by a step that is there already
            checkpoint.save(
                folder,
                step,
                write_weights=lambda target: save_file(model.state_dict(), target / "model.safetensors"),
                optimizer=optimizer,
                names=["weight"],
                state={"sum": float(model.weight.detach().double().sum())},
            )
            os.write(say, f"{step}\n".encode())
        checkpoint.keep_only(folder, {step, step - step % 5})


def begun(folder: Path, most: int | None = None) -> tuple[int, int]:
    """A child at work, and where to hear it; returns when it has got ready."""
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            work(folder, say, most)
            code = 0
        finally:
            os._exit(code)
    os.close(say)
    assert os.read(hear, 2) == b"0\n", "the child ended by itself"
    return child, hear


def pace(folder: Path) -> float:
    """Seconds for five saves, which are made."""
    child, hear = begun(folder, 5)
    started = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    os.close(hear)
    return time.monotonic() - started


def kill_once(folder: Path, seconds: float) -> dict[str, Any]:
    """Let a child work for so long, kill it, and check that nothing it called safe is lost."""
    child, hear = begun(folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
    with os.fdopen(hear, encoding="ascii") as handle:
        safe = [int(line) for line in handle.read().split("\n")[:-1]]
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    step = restored(folder)[2]
    assert step >= max(safe, default=0), f"step {max(safe)} was safe and {step} is left"
    return {"step": step, "left": left}


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill so many times."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    longest, before = max(LONGEST, pace(folder)), 5
    for number in range(kills):
        found = kill_once(folder, draw.uniform(0.0, longest))
        assert found["step"] >= before, f"kill {number}: step {before} was there and {found['step']} is left"
        before = found["step"]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
