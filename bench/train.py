"""`make bench-train`: how fast and with how much memory InstructRec tunes with LoRA, beside TRL's SFTTrainer with PEFT.

    python bench/train.py --trl-python VENV/bin/python     # an hour on two quiet cores
    python bench/train.py --size gpu                       # on a CUDA device
    python bench/train.py --size tiny --out FOLDER         # to try it: our side on a tiny random model, a minute
    python bench/train.py --profile                        # where the time of our side goes, three minutes
    python bench/train.py --page                           # page and picture from the files that are there

Both sides get the same token ids, batch rows, steps, rank, target modules, learning rate and seeds. Each measurement is
a process of its own (bench/train_side.py), sides take turns, and one file a measurement lies under
docs/results/train; what is there is not measured again. TRL is no part of this project: --trl-python names a Python
that has it (trl 1.16.0), without which only our side is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost import Shape, operations
from reading_data import generated, read_jsonl, tiny_model
from train_page import draw, page, where_it_goes

from instructrec import console, read
from instructrec.environment import commit_of_source, describe
from instructrec.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "docs" / "results"
SIDE = Path(__file__).with_name("train_side.py")
LONG = 1024  # tokens of a long row
HELD = 12  # rows on which the loss is compared afterwards
RATE = 1e-3

# What each arm differs in from the defaults of its side.
_BF16 = {"side": "trl", "weights": "bf16"}
_GROUPED = {"train_sampling_strategy": "group_by_length"}
_PLAIN = _GROUPED | {"gradient_checkpointing": False}
ARMS: dict[str, dict[str, Any]] = {
    "ours": {"side": "ours"},
    "ours_alone": {"side": "ours", "share": False},
    "ours_checkpointing": {"side": "ours", "checkpointing": True},
    "ours_split": {"side": "ours", "accumulation": 4},
    "ours_two_processes": {"side": "ours", "processes": 2},
    "ours_bound": {"side": "ours", "environment": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}},
    "ours_asleep": {"side": "ours", "environment": {"GOMP_SPINCOUNT": "0"}},
    "ours_not_fused": {"side": "ours", "fused": False},
    "ours_unsorted": {"side": "ours", "pool": 1},
    "trl": {"side": "trl"},
    "trl_bf16": _BF16,
    "trl_grouped_checkpointing": _BF16 | {"config": _GROUPED},
    "trl_grouped": _BF16 | {"config": _PLAIN},
    "trl_split": _BF16 | {"config": _PLAIN | {"gradient_accumulation_steps": 4}},
    "trl_padding_free": _BF16 | {"config": _PLAIN | {"padding_free": True, "max_length": None}},
    "trl_packed": _BF16 | {"config": {"gradient_checkpointing": False, "packing": True, "rows": 1}},
}
# As the command line sets it; the other side has OpenMP's and torch's defaults.
_OURS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "THP_MEM_ALLOC_ENABLE": "1"}
_ALLOCATOR = _OURS | {
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
}
ARMS["trl_allocator"] = ARMS["trl_grouped"] | {"environment": _ALLOCATOR}  # what we set for ourselves
MAIN = ("ours", "trl", "trl_allocator")

Row = dict[str, Any]


@dataclass(frozen=True)
class Set:
    """Rows to learn from. rows: of a step; steps: measured, after `warm` of them."""

    title: str
    rows: int
    steps: int
    warm: int = 1


SETS = {
    "cpu": {
        "short": Set("short rows: banking77", 16, 3),
        "middle": Set("middle rows: p3_mini", 8, 4),
        "long": Set("rows of 1,024 tokens", 1, 3),
    },
    "gpu": {
        "short": Set("short rows: banking77", 128, 25, 5),
        "middle": Set("middle rows: p3_mini", 64, 25, 5),
        "long": Set("rows of 1,024 tokens", 16, 20, 5),
    },
    "tiny": {"short": Set("toy rows", 8, 3)},
}


def _banking(renderer: Any) -> list[Row]:
    asked = "Which intent does this message to a bank have? Answer with the name of the intent."
    rows = read_jsonl(DATA / "banking77" / "train.jsonl")
    return _rendered([{"instruction": asked, "input": row["text"], "output": row["label"]} for row in rows], renderer)


def _p3(renderer: Any) -> list[Row]:
    files = sorted(file for file in (DATA / "p3_mini").glob("*.jsonl") if file.stem != "templates")
    rows = [row for file in files for row in read_jsonl(file)]
    return _rendered([{"instruction": row["instruction"], "output": row["answer"]} for row in rows], renderer)


def _long(renderer: Any) -> list[Row]:
    """Rows one after the other, cut on the left; the answer of the last is supervised."""
    rows = [{name: row[name] for name in ("instruction", "input", "output")}
            for row in [*read_jsonl(DATA / "seed_tasks" / "seed_tasks.jsonl"),
                        *read_jsonl(DATA / "zh_instruct" / "train.jsonl")[:2000]]]  # fmt: skip
    parts = [*_p3(renderer), *_rendered(rows, renderer)]
    random.Random(1).shuffle(parts)
    joined, ids = [], []
    for part in parts:
        ids += part["input_ids"]
        if len(ids) >= LONG and len(part["input_ids"]) <= LONG // 2:
            mask = [0] * (LONG - len(part["input_ids"])) + part["completion_mask"]
            joined.append({"input_ids": ids[-LONG:], "completion_mask": mask})
            ids = []
    return joined


def _toys(renderer: Any) -> list[Row]:
    examples = [example for task in generated().tasks.values() for example in task]
    rows = [dict(row) for example in examples for row in example.values()]
    return _rendered([{name: row[name] for name in ("instruction", "input", "output")} for row in rows], renderer)


def _rendered(rows: Sequence[dict[str, Any]], renderer: Any) -> list[Row]:
    """Token ids, and 1 where a token is supervised; answers longer than half a thousand tokens are left out."""
    made = [renderer.render(record) for record in read(list(rows)).records]
    return [
        {"input_ids": list(one.ids), "completion_mask": [int(flag) for flag in one.supervised]}
        for one in made
        if len(one.ids) <= LONG and not any(one.supervised[: one.prompt_end])
    ]


ROWS: dict[str, Callable[[Any], list[Row]]] = {"short": _banking, "middle": _p3, "long": _long}


def rows_of(name: str, size: str, seed: int, renderer: Any) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows kept out, drawn by seed; no two with the same tokens."""
    chosen = (_toys if size == "tiny" else ROWS[name])(renderer)
    chosen = list({tuple(row["input_ids"]): row for row in chosen}.values())
    random.Random(seed).shuffle(chosen)
    one = SETS[size][name]
    count = one.rows * (one.steps + one.warm)
    held = HELD if name != "long" else HELD // 3
    return chosen[:count], chosen[count : count + held]


def work(model: str, rows: Sequence[Row]) -> float:
    """Multiplications and additions that tuning on these rows has to take (bench/cost.py), the adapter left out."""
    import torch
    import transformers

    from instructrec.models.reading import ReadingPlan

    config = transformers.AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    empty.requires_grad_(False)
    total = 0.0
    for row in rows:
        answer = min(len(row["input_ids"]), sum(row["completion_mask"]) + 4)
        total += operations(empty, Shape(1, len(row["input_ids"]) - answer, answer), ReadingPlan())
    return total


def measure(job: dict[str, Any], python: str) -> dict[str, Any]:
    """What one process tells."""
    environment = {key: value for key, value in os.environ.items() if key not in _OURS}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment |= (_OURS if job["arm"]["side"] == "ours" else {}) | job["arm"].get("environment", {})
    processes = job["arm"].get("processes", 1)
    if job["device"] == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    environment["OMP_NUM_THREADS"] = str(max(1, job["threads"] // processes))
    job = job | {"threads": max(1, job["threads"] // processes)}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        write_json(file, job)
        command = [python, *launcher, str(SIDE), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def _fits(arm: dict[str, Any], one: Set) -> bool:
    accumulation = arm.get("accumulation", arm.get("config", {}).get("gradient_accumulation_steps", 1))
    return one.rows % accumulation == 0 and one.rows >= arm.get("processes", 1)


def measure_all(given: argparse.Namespace, folder: Path, model: str, renderer: Any) -> None:
    """Every measurement that has no file yet; sides take turns within a round."""
    sets = SETS[given.size]
    commit, dirty = commit_of_source()
    for number in range(given.rounds):
        for name in given.sets.split(",") if given.sets else sets:
            rows, held = rows_of(name, given.size, number, renderer)
            for arm in given.arms.split(","):
                file = folder / f"{name}-{arm}-t{given.threads}-r{number}.json"
                trl = ARMS[arm]["side"] == "trl"
                if file.exists() or not _fits(ARMS[arm], sets[name]) or (trl and not given.trl_python):
                    continue
                shape = {"rows": rows, "held": held, "batch_rows": sets[name].rows, "warm": sets[name].warm}
                steps = sets[name].steps + sets[name].warm
                how = {"arm": ARMS[arm], "device": given.device, "threads": given.threads, "model": model}
                job = shape | how | {"steps": steps, "rate": RATE, "seed": number}
                told = measure(job, given.trl_python if trl else sys.executable)
                met = told.pop("met")
                told["operations"] = work(model, [rows[one] for one in met])
                if told["tokens"] and met:
                    told["operations"] *= told["tokens"] / sum(len(rows[one]["input_ids"]) for one in met)
                facts = {"set": name, "arm": arm, "round": number, "batch_rows": sets[name].rows}
                facts |= {"device": given.device, "size": given.size, "commit": commit, "dirty": dirty}
                write_json(file, facts | told)
                speed, peak = told["tokens"] / told["seconds"], told["memory"] / 1e6
                console.say(f"{file.stem}: {speed:,.0f} tokens/s, {peak:,.0f} MB, loss {told['held_loss']:.3f}")


def profile(given: argparse.Namespace, folder: Path, model: str, renderer: Any) -> None:
    """Where the time of our side goes: one run of each set under torch's profiler, in one thread."""
    commit, dirty = commit_of_source()
    for name, one in SETS[given.size].items():
        rows, held = rows_of(name, given.size, 0, renderer)
        job = {
            "rows": rows, "held": held, "batch_rows": one.rows, "warm": one.warm, "arm": ARMS["ours"],
            "device": given.device, "threads": 1, "model": model, "steps": one.steps + one.warm, "rate": RATE,
            "seed": 0, "profile": True,
        }  # fmt: skip
        shares = measure(job, sys.executable)["profile"]
        write_json(folder / f"{name}-profile.json", {"set": name, "commit": commit, "dirty": dirty, "shares": shares})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not there, then write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SETS, default="cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sets", default="", help="of those of the size, separated by commas")
    parser.add_argument("--arms", default=",".join(MAIN), help=f"of {', '.join(ARMS)}, or all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON", ""), help="a Python that has trl")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--profile", action="store_true", help="where the time of our side goes, nothing else")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    given = parser.parse_args(arguments)
    given.device = given.device or ("cuda" if given.size == "gpu" else "cpu")
    given.arms = ",".join(ARMS) if given.arms == "all" else given.arms
    for flag, known in (("arms", ARMS), ("sets", SETS[given.size])):
        if unknown := [one for one in filter(None, getattr(given, flag).split(",")) if one not in known]:
            parser.error(f"--{flag}: unknown {', '.join(unknown)} (known: {', '.join(known)})")
    folder = given.out / "train"
    if not given.page:
        from instructrec.models import backbone as backbones
        from instructrec.prompts.choose import make_renderer

        if given.size == "tiny":
            with tempfile.TemporaryDirectory() as temporary:
                return _run(given, folder, str(tiny_model(Path(temporary) / "model", generated())), make_renderer)
        return _run(given, folder, backbones.find(given.model, offline=True), make_renderer)
    return _write(given, folder)


def _run(given: argparse.Namespace, folder: Path, model: str, make_renderer: Any) -> int:
    from instructrec.models import backbone as backbones

    tokenizer, _, kind = backbones.load_tokenizer(model, offline=True)
    renderer = make_renderer(tokenizer, "auto", "", default=kind.template, closed=kind.closed)
    folder.mkdir(parents=True, exist_ok=True)
    machine = folder / f"machine-{given.device}.md"
    if not machine.exists():  # how much memory is free changes, and a changed file would stand in every result
        write_text(machine, describe() + "\n")
    (profile if given.profile else measure_all)(given, folder, model, renderer)
    return _write(given, folder)


def _write(given: argparse.Namespace, folder: Path) -> int:
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*-r*.json"))]
    named = [given.size] if given.size == "tiny" else ["gpu", "cpu"]
    titles = {name: one.title for size in named for name, one in SETS[size].items()}
    profiles = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*-profile.json"))]
    write_text(given.out / "train.md", page(found, titles) + where_it_goes(profiles, titles))
    draw(found, titles, given.out / "train.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
