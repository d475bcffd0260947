"""A real limit of the operating system on the size of a file, through the whole of `tune`, in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = """
import json, resource, sys
from pathlib import Path
from instructrec import cli
from instructrec.training import checkpoint

table, model, out, limit = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), resource.getrlimit(resource.RLIMIT_FSIZE)
told = lambda *more: cli.main(["tune", str(table), "--model", model, "--out", str(out), "--precision", "fp32", "--threads", "1",
    "--batch-rows", "4", "--max-steps", "6", "--save-steps", "2", "--eval-every", "100", "--no-tensorboard", "--seed", "1", *more])
save, saved = checkpoint.save, []

def small(folder, step, **given):
    if step >= after:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        made = save(folder, step, **given)
        saved.append(step)
        return made
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

checkpoint.save = small
codes = []
for after, more in ((0, ()), (4, ()), (99, ("--resume",))):
    codes.append(told(*more))
    codes.append([sorted(path.name for path in (out / "checkpoints").iterdir()), list(saved)])
print("\\n" + json.dumps(codes))
"""


def test_a_full_disk_ends_the_run_and_loses_nothing(tiny_folder: Any, tmp_path: Path) -> None:
    table, out = tmp_path / "rows.tsv", tmp_path / "run"
    rows = [f"Say {word}\t{word.upper()}" for word in ("red", "green", "lamp", "road", "tree", "cup") for _ in range(8)]
    table.write_text("instruction\toutput\n" + "\n".join(rows) + "\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(table), str(tiny_folder("qwen")), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == [
        3, [[], []], 3, [["step-2"], [2]], 0, [["step-6"], [2, 4, 6]],
    ]  # fmt: skip
    size = sum(path.stat().st_size for path in (out / "checkpoints" / "step-6").glob("*.safetensors"))
    lines = [line for line in ended.stderr.splitlines() if "could not be written" in line]
    assert len(lines) == 2
    for line, step, rest in zip(lines, (2, 4), ("there is no complete one before it", "the newest complete one is step-2"), strict=True):  # fmt: skip
        start, end = line.split(" (needs about ")
        where = out / "checkpoints" / f"step-{step}"
        assert start.endswith(f"checkpoint: {where} could not be written: File too large")
        bytes_said, told = end.split(" bytes); ")
        assert told == rest
        assert 0.8 < int(bytes_said.replace(",", "")) / size < 1.2
