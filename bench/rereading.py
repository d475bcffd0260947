"""`make bench-rereading`: what reading an instruction again does to a model that was never tuned for it.

For each model and each of five sets of ../shared/data: 300 rows, read once to four times, and the loss of the right
answer after each reading; smollm2-135m also with memory=sink+last. One file of scores a model and set under
docs/results/rereading (no text of rows), from which page and picture are made; what is there already is not done again.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reading_data import Row, induction, read_jsonl, sentfin
from reading_page import rereading_page, write_result

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.errors import InstructRecError
from instructrec.files import read_json, sha256_of

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "docs" / "results" / "rereading"
MODELS = ("smollm2-135m", "gemma-3-270m")
MOST = 4  # readings
LONGEST = 350  # tokens of a row
BATCH_TOKENS = 3072
SINK_MODEL = "smollm2-135m"  # also read with memory=sink+last


def _induction(data: Path) -> list[Row]:
    draw = random.Random(0)
    return [draw.choice(list(example.values())) for rows in induction(data).tasks.values() for example in rows]


def _p3(data: Path) -> list[Row]:
    files = sorted((data / "p3_mini").glob("*.jsonl"))
    rows = [row for file in files if file.stem != "templates" for row in read_jsonl(file)]
    return [{"task": row["task"], "instruction": row["instruction"], "output": row["answer"]} for row in rows]


def _seed_tasks(data: Path) -> list[Row]:
    rows = read_jsonl(data / "seed_tasks" / "seed_tasks.jsonl")
    return [{name: row[name] for name in ("instruction", "input", "output")} for row in rows]


def _zh_instruct(data: Path) -> list[Row]:
    rows = read_jsonl(data / "zh_instruct" / "train.jsonl")
    return [{"task": row["source"]} | {name: row[name] for name in ("instruction", "input", "output")} for row in rows]


SETS: dict[str, tuple[str, Callable[[Path], list[Row]]]] = {
    "instruction_induction": ("rows.jsonl", _induction),
    "p3_mini": ("*.jsonl", _p3),
    "seed_tasks": ("seed_tasks.jsonl", _seed_tasks),
    "sentfin": ("test.jsonl", lambda data: sentfin(data / "sentfin" / "test.jsonl")),
    "zh_instruct": ("train.jsonl", _zh_instruct),
}


def losses_by_reading(
    model: Any, rows: Sequence[Any], strokes: int, *, pad_id: int, batch_tokens: int, averaged: int = 0
) -> list[list[tuple[float, int]]]:
    """(nats, tokens) of each row after 1, 2, .. `strokes` readings: [reading][row], in one pass a batch; and last,
    where asked for, those of the mean probability of each token after the first `averaged` readings.

    model: a `Reading`; an answer after every reading stands beside the next reading, which does not see it.
    """
    import torch
    from torch.nn import functional

    from instructrec.models.reading import cut, lay
    from instructrec.training.batching import by_length

    plan, device = model.plan, next(model.parameters()).device
    lengths = [plan.tokens(cut(row), len(row.ids) - cut(row), strokes, deep=True) for row in rows]
    kinds = strokes + (1 if averaged else 0)
    found: list[list[tuple[float, int]]] = [[(0.0, 0)] * len(rows) for _ in range(kinds)]
    for numbers in by_length(lengths, sorted(range(len(rows)), key=lengths.__getitem__), batch_tokens, None):
        laid = lay([rows[number] for number in numbers], plan, strokes, pad_id=pad_id, deep=True)
        passes = tuple(one.to(device) for one in laid.passes)
        with torch.no_grad():
            logits = model(passes=passes, positions=laid.positions.to(device))[0]
            nats = functional.cross_entropy(logits.float(), laid.targets.to(device), reduction="none").double().cpu()
        for place, number in enumerate(numbers):
            own = nats[laid.owners == place].view(strokes, -1)  # a row's positions come reading by reading
            if averaged:
                mean = torch.logsumexp(-own[:averaged], dim=0) - math.log(averaged)
                own = torch.cat([own, -mean[None]])
            for reading in range(kinds):
                found[reading][number] = (float(own[reading].sum()), own.shape[1])
    return found


def choose(rows: Sequence[Row], renderer: Any, count: int, seed: int) -> tuple[list[Any], list[Any], int]:
    """Records and their ids: `count` rows drawn by seed, those over LONGEST tokens passed over (how many, comes last).
    As many of each task as can be had."""
    from instructrec.data.readers import read

    by_task: dict[str | None, list[Any]] = {}
    for record in read(list(rows)):
        by_task.setdefault(record.task, []).append(record)
    draw = random.Random(seed)
    for records in by_task.values():
        draw.shuffle(records)
    turns = [by_task[task][turn] for turn in range(max(map(len, by_task.values()))) for task in by_task
             if turn < len(by_task[task])]  # fmt: skip
    records, rendered, passed = [], [], 0
    for record in turns:
        ids = renderer.render(record)
        if len(ids.ids) > LONGEST:
            passed += 1
            continue
        records.append(record)
        rendered.append(ids)
        if len(records) == count:
            break
    return records, rendered, passed


def measure(name: str, set_name: str, loaded: Any, count: int, data: Path) -> dict[str, Any]:
    """All readings of one model on one set: losses of each row."""
    from instructrec.models.reading import Reading, ReadingPlan

    started = time.time()
    records, rendered, passed = choose(SETS[set_name][1](data), loaded.renderer, count, 0)
    options = {"pad_id": loaded.backbone.pad_id, "batch_tokens": BATCH_TOKENS}
    model = Reading(loaded.model, ReadingPlan(strokes=(2,))).eval()
    found = losses_by_reading(model, rendered, MOST, **options)
    readings = {str(number): losses for number, losses in enumerate(found, 1)}
    if name == SINK_MODEL:
        model = Reading(loaded.model, ReadingPlan(strokes=(2,), memory="sink+last")).eval()
        readings["2 sink+last"] = losses_by_reading(model, rendered, 2, **options)[1]
    return {
        "rows": [record.key[:8] for record in records],
        "tasks": [record.task or "" for record in records],
        "tokens": [count for _, count in found[0]],
        "instruction_tokens": [row.instruction_end for row in rendered],
        "too_long": passed,
        "nats": {reading: [round(nats, 5) for nats, _ in losses] for reading, losses in readings.items()},
        "precision": loaded.precision,
        "seconds": round(time.time() - started, 1),
    }


def _digest(set_name: str, data: Path) -> str:
    files = sorted((data / set_name).glob(SETS[set_name][0]))
    return "".join(sha256_of(file)[:16] for file in files)[:64]


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not there yet, a file at a time."""
    from instructrec.inference.loading import open_target

    for name in arguments.models.split(","):
        loaded = None
        for set_name in arguments.sets.split(","):
            file = Path(arguments.results) / f"{Path(name).name}-{set_name}.json"
            wanted = {
                "command": f"python bench/rereading.py --models {name} --sets {set_name} --rows {arguments.rows}",
                "data": _digest(set_name, arguments.data),
                "longest": LONGEST,
            }
            if file.is_file() and wanted.items() <= read_json(file).items():
                console.say(f"{file.name}: there already")
                continue
            loaded = loaded or open_target(name)
            commit, dirty = commit_of_source()
            scores = measure(name, set_name, loaded, arguments.rows, arguments.data)
            about = {"model": Path(name).name, "set": set_name, "commit": commit, "dirty": dirty}
            write_result(file, wanted | about | scores)
            console.say(f"{file.name}: {len(scores['rows'])} rows in {scores['seconds']:.0f} s")


def main(given: Sequence[str] | None = None) -> int:
    """Measure, then write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names or folders, separated by commas")
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--rows", type=int, default=300, help="rows of a set at most")
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--only-page", action="store_true", help="make page and picture from the files that are there")
    arguments = parser.parse_args(given)
    if unknown := [name for name in arguments.sets.split(",") if name not in SETS]:
        parser.error(f"--sets: unknown {', '.join(unknown)} (known: {', '.join(SETS)})")
    try:
        if not arguments.only_page:
            run(arguments)
        page = rereading_page(arguments.results)
    except InstructRecError as error:
        console.fail(str(error))
        return error.exit_code
    console.say(f"Written: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
