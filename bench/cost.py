"""`make bench-cost`: what reading again costs, beside what the arithmetic says it has to.

    python bench/cost.py                 # about ten minutes on two quiet cores; writes docs/results/cost.json and .md
    python bench/cost.py --model FOLDER --rounds 1 --scale 0.1   # to try it

Training: a step (forward, backward, AdamW) of LoRA on the same rows for each plan, alternating in one process, medians;
memory: peak of a process of its own above the loaded model. Answering: the prefill of one prompt, a token after it, and
the bytes of keys and values that are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.files import write_json, write_text
from instructrec.inference.engine import Sampling, stream
from instructrec.models import backbone as backbones
from instructrec.models.methods import get
from instructrec.models.methods.through_peft import uncast
from instructrec.models.reading import Reading, ReadingPlan
from instructrec.prompts.template import Rendered
from instructrec.recipes.memory import keeping_memory
from instructrec.recipes.reading import behind
from instructrec.training.batching import Layout
from instructrec.training.loop import Plan, make_optimizer
from instructrec.training.loss import token_losses

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results"
PLANS = {
    "single": ReadingPlan(),
    "repeat": ReadingPlan(strokes=(2,)),
    "deep": ReadingPlan(strokes=(2,), deep=True),
    "consistent": ReadingPlan(strokes=(2,), deep=True, consistency=1.0),
    "frozen": ReadingPlan(strokes=(2,), prior="frozen"),
    "gated": ReadingPlan(strokes=(2,), mix="gated", direction="bidirectional", memory="sink+last"),
}
READINGS = {name: PLANS[name] for name in ("single", "repeat", "frozen", "gated")} | {
    "three": ReadingPlan(strokes=(3,)),
    "sink_last": ReadingPlan(strokes=(2,), memory="sink+last"),
}
RANK = 16


@dataclass(frozen=True)
class Shape:
    """Rows of a step: B rows with N tokens of instruction and A of header and answer."""

    rows: int
    instruction: int
    answer: int


SHAPES = {"short": Shape(16, 47, 9), "long": Shape(1, 700, 50)}


def rows_of(shape: Shape, words: int) -> list[Rendered]:
    """Random rows; their speed is that of any others."""
    draw = torch.Generator().manual_seed(0)
    size = shape.instruction + shape.answer
    ids = torch.randint(10, words, (shape.rows, size), generator=draw).tolist()
    header = min(4, shape.answer - 1)
    flags = [False] * (shape.instruction + header) + [True] * (shape.answer - header)
    return [Rendered(one, flags, shape.instruction, shape.instruction + header) for one in ids]


def operations(model: Any, shape: Shape, plan: ReadingPlan) -> float:
    """Multiplications and additions of a training step: products with the frozen weights (forward, and backward for
    the inputs only), attention, the head at supervised positions. The adapter and elementwise work are left out."""
    config = model.config.get_text_config()
    layers, width = config.num_hidden_layers, config.num_attention_heads * config.head_dim
    head = model.get_output_embeddings().weight.numel()
    embedding = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    linear = sum(parameter.numel() for parameter in frozen) - head - embedding
    strokes, end = plan.most, shape.instruction
    numbers = range(1, strokes + 1)
    read = [2 * linear * end for _ in numbers]
    seen = [4 * layers * width * end * _keys(plan, number, end) for number in numbers]
    after = list(numbers) if plan.deep else [1 if plan.mix == "gated" else strokes]
    head_work = 2 * head * (shape.answer - min(4, shape.answer - 1))
    asked = len(after) * (2 * linear * shape.answer + head_work)
    asked_seen = sum(4 * layers * width * shape.answer * (stroke * end + shape.answer / 2) for stroke in after)
    back = [0 if plan.weights(number, strokes) == "off" else 1 for number in numbers]
    # Backward: one product for each with the weights, which are frozen; two for each of attention's two.
    total = sum(part * (1 + one) for part, one in zip(read, back, strict=True)) + 2 * asked
    total += sum(part * (1 + 2 * one) for part, one in zip(seen, back, strict=True)) + 3 * asked_seen
    return shape.rows * total


def _keys(plan: ReadingPlan, stroke: int, end: int) -> float:
    """Keys that a token of a stroke sees, on average."""
    own = end if plan.direction == "bidirectional" and stroke > 1 else end / 2
    return own + (0 if plan.mix == "gated" else (stroke - 1) * end)


class Trainer:
    """One plan, ready to take steps."""

    def __init__(self, model: str, plan: ReadingPlan, shape: Shape) -> None:
        dtype = backbones.compute_dtype("auto")
        loaded = backbones.load(model, dtype=dtype, offline=True)
        method = get("lora")
        options = {"rank": RANK, "alpha": 32.0, "dropout": 0.0, "target": "all-linear"}
        self.tuned = method.attach(loaded.model, options, 0)
        self.model = behind(plan, self.tuned, method, options, 0, rows=[], checkpoint=None)
        self.plan, self.shape = plan, shape
        AcceleratorState._reset_state()  # else it has the precision of a run before
        self.accelerator = Accelerator(cpu=True, mixed_precision="bf16" if dtype == torch.bfloat16 else "no")
        self.optimizer = make_optimizer(self.model, Plan(epochs=1, batch_tokens=1, learning_rate=1e-3))
        words = loaded.model.get_input_embeddings().weight.shape[0]
        layout = Layout(loaded.pad_id, plan, plan.most, plan.deep)
        self.batch = layout.batch(rows_of(shape, words))
        self.operations = operations(loaded.model, shape, plan)

    def step(self) -> float:
        """Seconds of one step."""
        self.model.train()
        started = time.perf_counter()
        with uncast(self.tuned if self.accelerator.mixed_precision == "bf16" else None):
            with self.accelerator.autocast():
                loss = token_losses(self.model, self.batch).mean()
            self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def training(model: str, rounds: int, shapes: dict[str, Shape]) -> dict[str, Any]:
    """Seconds of a step of each plan, its ratio to a single reading (median of the rounds' ratios), and what the
    operations say."""
    result: dict[str, Any] = {}
    for name, shape in shapes.items():
        trainers = {plan: Trainer(model, PLANS[plan], shape) for plan in PLANS}
        times: dict[str, list[float]] = {plan: [] for plan in PLANS}
        for number in console.track(range(rounds + 1), f"Training, {name} rows", unit="rounds"):
            for plan, trainer in trainers.items():
                seconds = trainer.step()
                if number:  # the first round warms up
                    times[plan].append(seconds)
        single = trainers["single"].operations
        result[name] = {
            plan: {
                "seconds": statistics.median(times[plan]),
                "ratio": statistics.median(a / b for a, b in zip(times[plan], times["single"], strict=True)),
                "operations": trainers[plan].operations,
                "operations_ratio": trainers[plan].operations / single,
            }
            for plan in PLANS
        }
    return result


def memory(model: str, shapes: dict[str, Shape]) -> dict[str, Any]:
    """Peak megabytes above the loaded model of three steps, each plan in a process of its own."""
    result: dict[str, Any] = {}
    for name in shapes:
        result[name] = {}
        for plan in PLANS:
            command = [sys.executable, __file__, "--model", model, "--peak", f"{name}:{plan}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result[name][plan] = round(float(done.stdout.split()[-1]))
    return result


def _peak(model: str, name: str, plan: str) -> float:
    trainer = Trainer(model, PLANS[plan], SHAPES[name])
    before = _status("VmRSS")
    with keeping_memory():
        for _ in range(3):
            trainer.step()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def answering(model: str, rounds: int, lengths: Sequence[int], tokens: int) -> dict[str, Any]:
    """Milliseconds of the prefill and of each token after it for one prompt, and megabytes of keys and values."""
    loaded = backbones.load(model, dtype=backbones.compute_dtype("auto"), offline=True)
    config = loaded.model.config.get_text_config()
    result: dict[str, Any] = {}
    models = {name: Reading(loaded.model, plan).eval() for name, plan in READINGS.items()}
    words = loaded.model.get_input_embeddings().weight.shape[0]
    for length in lengths:
        prompt = rows_of(Shape(1, length, 5), words)[0]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in READINGS}
        for number in console.track(range(rounds + 1), f"Answering, {length} tokens", unit="rounds"):
            for name, reading in models.items():
                pair = _answer(reading, prompt, tokens)
                if number:
                    times[name].append(pair)
        result[str(length)] = {
            name: {
                "prefill_ms": 1000 * statistics.median(first for first, _ in times[name]),
                "token_ms": 1000 * statistics.median(rest for _, rest in times[name]),
                "cache_mb": _kept(READINGS[name], length) * _bytes_a_token(config) / 1e6,
            }
            for name in READINGS
        }
    return result


def _answer(reading: Reading, prompt: Rendered, tokens: int) -> tuple[float, float]:
    started = time.perf_counter()
    ids = stream(reading, prompt, stop_ids=[0], pad_id=0, sampling=Sampling(max_new_tokens=tokens))
    stamps = [time.perf_counter() for _ in ids]
    return stamps[0] - started, (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)


def _kept(plan: ReadingPlan, length: int) -> int:
    """Tokens whose keys and values an answer sees."""
    if plan.mix == "gated":
        return length
    return length + 4 if plan.memory == "sink+last" else plan.most * length


def _bytes_a_token(config: Any) -> int:
    size = torch.finfo(backbones.compute_dtype("auto")).bits // 8
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size)


def table(result: dict[str, Any]) -> str:
    """The page."""
    lines = ["# What reading again costs", "", "```sh", result["command"], "```", ""]
    lines += [f"Commit {result['commit']}{' with uncommitted changes' if result['dirty'] else ''}; {result['model']},"]
    lines += [f"LoRA rank {RANK}, {result['threads']} threads, {result['precision']}; medians of {result['rounds']}."]
    lines += [
        "Operations: products with the weights, attention and head, counted; elementwise work is not in them.",
        "",
    ]
    for name, plans in result["training"].items():
        shape = result["shapes"][name]
        lines += [f"## Training, {name} rows: {shape[0]} rows of {shape[1]} + {shape[2]} tokens", ""]
        lines += ["| plan | seconds a step | against single | operations against single | peak memory, MB |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        for plan, entry in plans.items():
            peak = result["memory"][name][plan]
            ratios = f"{entry['ratio']:.2f} | {entry['operations_ratio']:.2f}"
            lines.append(f"| {plan} | {entry['seconds']:.2f} | {ratios} | {peak:,} |")
        lines.append("")
    lines += ["## Answering one prompt", ""]
    lines += ["| instruction, tokens | plan | prefill, ms | a token, ms | keys and values, MB |"]
    lines += ["| ---: | --- | ---: | ---: | ---: |"]
    for length, plans in result["answering"].items():
        for plan, entry in plans.items():
            figures = f"{entry['prefill_ms']:.0f} | {entry['token_ms']:.1f} | {entry['cache_mb']:.1f}"
            lines.append(f"| {length} | {plan} | {figures} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens of each shape, to try it")
    parser.add_argument("--peak", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.peak:
        print(_peak(arguments.model, *arguments.peak.split(":")))
        return 0
    scale = arguments.scale
    shapes = {
        name: Shape(one.rows, max(8, int(one.instruction * scale)), max(6, int(one.answer * scale)))
        for name, one in SHAPES.items()
    }
    commit, dirty = commit_of_source()
    with keeping_memory():  # as a run does
        steps = training(arguments.model, arguments.rounds, shapes)
    result: dict[str, Any] = {
        "command": " ".join(["python bench/cost.py", *sys.argv[1:]]),
        "commit": commit,
        "dirty": dirty,
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "precision": str(backbones.compute_dtype("auto")).removeprefix("torch."),
        "rounds": arguments.rounds,
        "shapes": {name: [one.rows, one.instruction, one.answer] for name, one in shapes.items()},
        "training": steps,
        "memory": memory(arguments.model, shapes),
        "answering": answering(arguments.model, arguments.rounds, [int(64 * scale), int(800 * scale)], 24),
    }
    write_json(arguments.out / "cost.json", result)
    write_text(arguments.out / "cost.md", table(result))
    console.say(
        json.dumps({name: {k: round(v["ratio"], 2) for k, v in p.items()} for name, p in result["training"].items()})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
