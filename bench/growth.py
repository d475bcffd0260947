"""`make bench-growth`: how time and memory of a tuning step grow with rows, length, rank, readings and the model.

    OMP_NUM_THREADS=1 python bench/growth.py   # some five minutes; writes docs/results/growth.json, .md and .png
    python bench/growth.py --size tiny --out FOLDER      # to try it

Random Llamas and random rows: their speed is that of any others. Each point is a process of its own: one step to warm
up, then the median of three, and the most memory above the loaded model. The exponent is the slope of the line through
the logarithms: 1 is growth in proportion.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train_side import Memory

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.files import write_json, write_text

OUT = Path(__file__).resolve().parents[1] / "docs" / "results"
STEPS = 3


@dataclass(frozen=True)
class Point:
    """A tuning step. tokens: of a row, half of them the instruction; width: of the model, with `layers` layers."""

    rows: int = 8
    tokens: int = 64
    rank: int = 16
    strokes: int = 1
    width: int = 384
    layers: int = 8


# What grows, from the point in the middle of everything, and over which values.
GROWTH: dict[str, dict[str, list[Any]]] = {
    "cpu": {
        "rows": [2, 4, 8, 16, 32],
        "tokens": [32, 64, 128, 256, 512, 1024],
        "rank": [2, 8, 32, 128],
        "strokes": [1, 2, 3, 4],
        "width": [192, 384, 768, 1152],
    },
    "tiny": {"rows": [1, 2, 4], "strokes": [1, 2]},
}
TITLES = {
    "rows": "rows of a step",
    "tokens": "tokens of a row",
    "rank": "rank",
    "strokes": "readings of the instruction",
    "width": "weights of the model",
}


def weights(point: Point) -> int:
    """Weights of the layers."""
    return point.layers * (int(2 * (1 + 1 / 3) * point.width**2) + 3 * point.width * point.width * 8 // 3)


def take(point: Point) -> dict[str, float]:
    """Seconds of a step and bytes, in this process."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from cost import Shape, rows_of
    from transformers import LlamaConfig, LlamaForCausalLM

    from instructrec.models import backbone as backbones
    from instructrec.models.methods import get
    from instructrec.models.methods.through_peft import uncast
    from instructrec.models.reading import ReadingPlan
    from instructrec.recipes.memory import keeping_memory
    from instructrec.recipes.reading import behind
    from instructrec.training.loop import Hooks, Plan, Training
    from instructrec.training.monitor import Monitor

    heads = point.width // 64  # a multiple of three
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=point.width,
        intermediate_size=point.width * 8 // 3,
        num_hidden_layers=point.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        head_dim=64,
        vocab_size=8192,
        tie_word_embeddings=True,
    )
    dtype = backbones.compute_dtype("auto")
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    method = get("lora")
    options = {"rank": point.rank, "alpha": 32.0, "dropout": 0.0, "target": "all-linear"}
    memory = Memory("cpu", model)
    half = point.tokens // 2
    rows = rows_of(Shape(point.rows * (STEPS + 1), half, point.tokens - half), 8192)
    plan = ReadingPlan(strokes=(point.strokes,))
    with keeping_memory():
        tuned = behind(plan, method.attach(model, options, 0), method, options, 0, rows=rows, checkpoint=None)
        how = Plan(epochs=1, batch_tokens=1 << 30, batch_rows=point.rows, learning_rate=1e-4, reading=plan)
        AcceleratorState._reset_state()  # else it has the precision of a run before
        accelerator = Accelerator(cpu=True, mixed_precision="bf16" if dtype == torch.bfloat16 else "no")
        stamps = [time.perf_counter()]
        training = Training(tuned, rows, how, accelerator)
        with uncast(tuned if dtype == torch.bfloat16 else None):
            training.run(Monitor({}), Hooks(log=lambda entry: stamps.append(time.perf_counter())))
    seconds = [after - before for before, after in zip(stamps[1:], stamps[2:], strict=False)]
    return {"seconds": statistics.median(seconds), "memory": memory.peak()}


def exponent(pairs: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line through (log x, log y)."""
    xs, ys = ([math.log(value) for value in side] for side in zip(*pairs, strict=True))
    mean_x, mean_y = statistics.mean(xs), statistics.mean(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


def place(name: str, point: dict[str, Any]) -> float:
    """Where a point stands on the axis of what grows."""
    made = Point(**point)
    return float(weights(made) if name == "width" else getattr(made, name))


def page(result: dict[str, Any]) -> str:
    """Tables with their exponents."""
    changed = " with uncommitted changes" if result["dirty"] else ""
    lines = ["# How the cost of a step grows", "", f"`{result['command']}`, commit {result['commit']}{changed}.", ""]
    base = ", ".join(f"{value} {name}" for name, value in result["base"].items())
    lines += [
        f"LoRA on random Llamas (vocabulary of 8,192), one thread; what does not grow stays at {base}.",
        "Exponent: slope in logarithms over all points, and over the last two; 1 is growth in proportion.",
        "",
        "![Growth](growth.png)",
        "",
        "| what grows | from, to | time: exponent | at the end | memory: exponent | at the end |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, points in result["points"].items():
        where = [place(name, one["point"]) for one in points]
        cells = []
        for what in ("seconds", "memory"):
            pairs = [(x, one[what]) for x, one in zip(where, points, strict=True)]
            cells += [f"{exponent(pairs):.2f}", f"{exponent(pairs[-2:]):.2f}"]
        lines.append(f"| {TITLES[name]} | {where[0]:,.0f} to {where[-1]:,.0f} | {' | '.join(cells)} |")
    for name, points in result["points"].items():
        lines += ["", f"| {TITLES[name]} | seconds a step | MB above the model |", "| ---: | ---: | ---: |"]
        lines += [
            f"| {place(name, one['point']):,.0f} | {one['seconds']:.3f} | {one['memory'] / 1e6:,.0f} |"
            for one in points
        ]
    return "\n".join([*lines, ""])


def draw(result: dict[str, Any], file: Path) -> None:
    """Time and memory against each, in logarithms."""
    from matplotlib.figure import Figure

    names = list(result["points"])
    figure = Figure(figsize=(2.9 * len(names), 4.6), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        points = result["points"][name]
        where = [place(name, one["point"]) for one in points]
        for row, (what, unit, scale) in enumerate((("seconds", "seconds a step", 1.0), ("memory", "MB", 1e6))):
            values = [one[what] / scale for one in points]
            axis = axes[row][column]
            axis.loglog(where, values, marker="o", color=f"C{row}")
            axis.set_title(f"exponent {exponent(list(zip(where, values, strict=True))):.2f}", fontsize=9)
            axis.set_xlabel(TITLES[name], fontsize=8)
            axis.set_ylabel(unit if column == 0 else "", fontsize=8)
            axis.tick_params(labelsize=7, which="both")
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take every point, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=GROWTH, default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--point", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.point:
        print(json.dumps(take(Point(**json.loads(given.point)))))
        return 0
    base = Point() if given.size == "cpu" else Point(rows=2, tokens=16, rank=2, width=192, layers=1)
    points: dict[str, list[dict[str, Any]]] = {}
    for name, values in GROWTH[given.size].items():
        points[name] = []
        for value in values:
            point = asdict(replace(base, **{name: value}))
            command = [sys.executable, __file__, "--point", json.dumps(point)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            points[name].append({"point": point, **found})
            console.say(f"{name} {value}: {found['seconds']:.3f} s, {found['memory'] / 1e6:,.0f} MB")
    commit, dirty = commit_of_source()
    command_line = " ".join(["python bench/growth.py", *(["--size", given.size] if given.size != "cpu" else [])])
    result = {"command": command_line, "commit": commit, "dirty": dirty, "base": asdict(base), "points": points}
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "growth.json", result)
    write_text(given.out / "growth.md", page(result))
    draw(result, given.out / "growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
