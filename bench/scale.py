"""`make bench-scale`: what reading, checking, splitting and ordering five million rows need.

    python bench/scale.py                       # 5,000,000 rows, a gigabyte in build/scale
    python bench/scale.py --rows 20000          # to try it
    python bench/scale.py --render              # also tokenise all rows, by all cores, and time a first step

Each measure is a process of its own (reading and rendering use one for each core); memory is what it holds beside
mapped files (RssAnon) above what it held after its imports. Plain reading is `json.loads` of every line in the same
call.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "scale.json"
WORDS = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all"
).split()


def generate(path: Path, rows: int) -> None:
    """Rows of 40 tasks with 7 wordings each, about 200 bytes a row."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            task = draw.randrange(40)
            row = {"instruction": f"Task {task}: rewrite the text in the plain style number {number % 7}."}
            row |= {"input": " ".join(draw.choices(WORDS, k=14)) + f" {number}"}
            row |= {"output": " ".join(draw.choices(WORDS, k=7))}
            file.write(json.dumps(row | {"task": f"t{task}"}) + "\n")


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def plain(path: str) -> int:
    """Every line through `json.loads`."""
    count = 0
    with open(path, "rb") as file:
        for line in file:
            json.loads(line)
            count += 1
    return count


def _rows(path: str) -> Any:
    from instructrec.data import read

    return read(path)


def index(path: str) -> int:
    """Read with all checks of rows, and leave the index."""
    return len(_rows(path))


def current(path: str) -> int:
    """Read where the index is there already."""
    return len(_rows(path))


def findings(path: str) -> list[str]:
    """What `check` looks for."""
    from instructrec.data.consistency import examine

    return [finding.kind for finding in examine(_rows(path).records)]


def parting(path: str) -> str:
    """What is held out."""
    from instructrec.data.splits import plan_held_out

    return plan_held_out(_rows(path).records, held_out="auto", share=0.05, seed=0).explanation


def order(path: str) -> int:
    """Micro-batches of three epochs, lengths made up."""
    import numpy as np

    from instructrec.training.loop import Plan, plan_steps

    lengths = np.random.default_rng(0).integers(30, 120, len(_rows(path)))
    return len(plan_steps(lengths, Plan(epochs=3, batch_tokens=512, learning_rate=1.0)))


def first_step(path: str) -> dict[str, float]:
    """Seconds from the call of `tune` until the model (smollm2-135m) is first asked for something, which is when all
    that depends on the number of rows is done, and until the first step's end, after a look at 16 held-out rows."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from instructrec import tune

    asked: list[float] = []
    ended: list[float] = []
    register_module_forward_pre_hook(lambda *_: None if asked else asked.append(time.perf_counter()))
    register_optimizer_step_post_hook(lambda *_: ended.append(time.perf_counter()))
    started = time.perf_counter()
    out = str(Path(path).parent / f"run-{time.time():.0f}")
    tune(path, out=out, max_steps=1, batch_rows=4, eval_rows=8, epochs=3, offline=True, model=os.environ["MODEL"])
    return {"asked": round(asked[0] - started, 2), "step": round(ended[0] - started, 2)}


STEPS: dict[str, Callable[[str], Any]] = {
    "plain": plain, "index": index, "current": current, "findings": findings, "parting": parting, "order": order,
    "render": first_step, "first_step": first_step,
}  # fmt: skip


def child(name: str, path: str) -> None:
    """One measure; a line of JSON."""
    import threading

    import instructrec.data.consistency
    import instructrec.training.loop

    if name in ("render", "first_step"):
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import instructrec.recipes.tune  # noqa: F401

    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started, already = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    said = STEPS[name](path)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    peak[0] = max(peak[0], anonymous() - before)
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) - already
    times = {"seconds": round(seconds, 2), "processor_seconds": round(used, 2)}
    print(json.dumps(times | {"memory_mb": round(peak[0] / 1e6), "said": said}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "scale")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        child(*given.child)
        return 0
    from instructrec.environment import commit_of_source
    from instructrec.files import write_json
    from instructrec.models.embedded import fetch

    given.build.mkdir(parents=True, exist_ok=True)
    path = given.build / f"rows-{given.rows}.jsonl"
    if not path.exists():
        generate(path, given.rows)
    size = path.stat().st_size
    cache = given.build / "cache"
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "INSTRUCTREC_LARGE_FILE": str(min(size, 64 << 20))}
    if given.render:
        env["MODEL"] = str(fetch("smollm2-135m"))
    commit, dirty = commit_of_source()
    result: dict[str, Any] = {"rows": given.rows, "bytes": size, "commit": commit, "dirty": dirty, "steps": {}}
    result["command"] = f"python bench/scale.py --rows {given.rows}" + " --render" * given.render
    for name in [name for name in STEPS if given.render or name not in ("render", "first_step")]:
        if name == "index":
            shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, str(Path(__file__)), "--child", name, str(path)]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(ran.stderr, file=sys.stderr)
            return 1
        result["steps"][name] = found = json.loads(ran.stdout.strip().splitlines()[-1])
        print(f"{name}: {found['seconds']} s, {found['memory_mb']} MB, {found['said']}", flush=True)
    result["reading_against_plain"] = round(
        result["steps"]["plain"]["seconds"] / result["steps"]["index"]["seconds"], 3
    )
    write_json(given.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
