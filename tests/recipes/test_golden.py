"""Ten steps of every tuning method give the losses that were recorded: numerics change only on purpose, and announced.

    python tests/recipes/test_golden.py --write

records the losses of this machine in golden.json and prints the line that CHANGELOG.md has to have. `numerics` counts
the changes: it goes up by one when a loss has moved by more than another machine may move it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # when this is run as a program

import learning
import tiny
from instructrec.environment import arithmetic_flags
from instructrec.models.methods import METHODS
from instructrec.training.loop import Hooks
from instructrec.training.monitor import Monitor

FILE = Path(__file__).with_name("golden.json")
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
STEPS, SAME_MACHINE, ANOTHER = 10, 1e-6, 1e-4
# Few numbers, or scales of random weights: a change would not show at the rate of the others.
RATES = {"ia3": 0.3, "prefix_tuning": 0.3, "prompt_tuning": 0.3, "p_tuning": 0.05}
WRITE = "python tests/recipes/test_golden.py --write"


def machine() -> dict[str, str]:
    """What rounding depends on."""
    flags = " ".join(arithmetic_flags())
    return {"torch": str(torch.__version__), "vectors": torch.backends.cpu.get_cpu_capability(), "flags": flags}


def losses(method: str) -> list[float]:
    """Ten steps on random rows: unequal lengths, accumulation, decay, clipping, a rate that rises and falls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = METHODS[method].attach(tiny.model("llama"), learning.options_of(METHODS[method]), 0)
        how = learning.plan(
            epochs=3.0, max_steps=STEPS, batch_rows=2, accumulation=2, schedule="cosine", warmup=0.2, weight_decay=0.1,
            clip=1.0, seed=7, learning_rate=RATES.get(method, 1e-2),
        )  # fmt: skip
        rows = learning.rows([4, 40, 12, 25, 7, 31, 20, 9, 11, 5, 16, 33, 18, 14, 6, 22], 290)
        entries: list[dict[str, Any]] = []
        learning.training(model, rows, how).run(Monitor({}), Hooks(log=entries.append))
        return [entry["loss"] for entry in entries]
    finally:
        torch.set_num_threads(threads)


def recorded() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return value


def announcement(golden: dict[str, Any]) -> str:
    """The line of CHANGELOG.md: the number, and 8 hex digits over the losses of each method."""
    digests = {name: hashlib.sha256(json.dumps(values).encode()) for name, values in sorted(golden["losses"].items())}
    return f"- numerics {golden['numerics']}: " + ", ".join(
        f"{name} {d.hexdigest()[:8]}" for name, d in digests.items()
    )


def distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_give_the_recorded_losses(method: str) -> None:
    golden = recorded()
    assert method in golden["losses"], (
        f"no golden losses of '{method}' yet: {WRITE}, and put its line into CHANGELOG.md"
    )
    got, want = losses(method), golden["losses"][method]
    assert len(got) == STEPS and got[-1] < got[0] - 0.1, "these steps would not notice a change"
    bound = SAME_MACHINE if golden["machine"] == machine() else ANOTHER
    changed = f"the numerics of '{method}' have changed: if that is meant, {WRITE}, and say so in CHANGELOG.md"
    assert distance(got, want) <= bound, changed


def test_no_method_is_recorded_that_is_gone() -> None:
    assert sorted(recorded()["losses"]) == sorted(METHODS), WRITE


def test_the_changelog_announces_the_recorded_losses() -> None:
    line = announcement(recorded())
    assert line in CHANGELOG.read_text(encoding="utf-8").splitlines(), f"CHANGELOG.md lacks the line '{line}'"


def write() -> None:
    """Record the losses of this machine."""
    before = recorded() if FILE.is_file() else {"numerics": 1, "losses": {}}
    now = {name: losses(name) for name in sorted(METHODS)}
    both = now.keys() & before["losses"].keys()
    moved = [name for name in sorted(both) if distance(now[name], before["losses"][name]) > ANOTHER]
    golden = {"numerics": before["numerics"] + bool(moved), "machine": machine(), "losses": now}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"Moved: {', '.join(moved) or 'none'}. CHANGELOG.md has to have this line:\n{announcement(golden)}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"want: {WRITE}")
    write()
