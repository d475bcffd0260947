"""SIGKILL at random moments. 20 times here; `make torture` sets INSTRUCTREC_KILLS to 200."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("INSTRUCTREC_KILLS", "20"))


def test_no_kill_loses_a_finished_checkpoint(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kills.py")
    seed = os.environ.get("INSTRUCTREC_SEED", "5")
    folder = tmp_path / "checkpoints"
    ended = subprocess.run(
        [sys.executable, str(script), str(folder), str(KILLS), seed],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    steps = [one["step"] for one in found]
    assert len(found) == KILLS and steps == sorted(steps)
    assert steps[-1] > KILLS  # children do get on
    inside = [one for one in found if one["left"]]
    assert len(inside) >= KILLS // 5, "too few kills came in the middle of something"
    assert all(len(one["left"]) <= 3 for one in found)  # leftovers are swept, they do not pile up
    assert len(list(folder.glob("step-*"))) <= 4
