"""`make results`: tune and evaluate on real data, and write docs/results.md with command, commit and intervals.

Three jobs, each on a fixed selection by seed:
  instruction_induction  18 tasks: 4 never seen, 2 that `tune` keeps out to watch, the rest to learn from; two wordings
                         of each task are never learned from
  banking77              1,000 rows with all 77 labels
  tatoeba_cmn_eng        1,000 English-Chinese pairs, with gemma-3-270m
A job is tuned again only if its command or its rows have changed (delete build/results to start over).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.evaluation.report import interval, number
from instructrec.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
BUILD = ROOT / "build" / "results"
UNSEEN_TASKS = ("antonyms", "num_to_verbal", "singular_to_plural", "taxonomy_animal")
Rows = list[dict[str, Any]]


def _read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _write(name: str, rows: Rows) -> str:
    path = BUILD / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path.relative_to(ROOT))


def induction() -> dict[str, Any]:
    """Rows of 18 tasks with several human wordings each."""
    source, wordings = DATA / "instruction_induction", {}
    wordings = json.loads((source / "paraphrases.json").read_text(encoding="utf-8"))
    by_task: dict[str, Rows] = {}
    for row in _read(source / "rows.jsonl"):
        by_task.setdefault(row["task"], []).append(row)
    draw = random.Random(0)
    parts: dict[str, Rows] = {"train": [], "seen": [], "unseen_wordings": [], "unseen_tasks": []}
    for task, rows in sorted(by_task.items()):
        draw.shuffle(rows)
        known, new = wordings[task][:-2], wordings[task][-2:]
        pieces = {"train": rows[:100], "seen": rows[100:111], "unseen_wordings": rows[111:122]}
        if task in UNSEEN_TASKS:
            pieces = {"unseen_tasks": rows[:38]}
        elif len(rows) < 122:  # three tasks have few rows: most are for learning
            cut = max(2, len(rows) // 8)
            pieces = {"seen": rows[:cut], "unseen_wordings": rows[cut : 2 * cut], "train": rows[2 * cut :]}
        for part, chosen in pieces.items():
            for row in chosen:
                wording = draw.choice(new if part == "unseen_wordings" else known)
                parts[part].append(
                    {
                        "task": task,
                        "instruction": wording,
                        "input": row["input"],
                        "output": row["output"],
                        "alternatives": row.get("alternatives", []),
                    }
                )
    draw.shuffle(parts["train"])
    files = {part: _write(f"induction/{part}.jsonl", rows) for part, rows in parts.items()}
    tests = [files["seen"], files["unseen_wordings"], files["unseen_tasks"]]
    return {"train": files["train"], "tests": tests, "tune": ["--epochs", "2"]}


def banking() -> dict[str, Any]:
    """77 intents: 13 rows of each but one to learn from (1,000), 4 of each to test."""
    instruction = "Which intent does this message to a bank have? Answer with the name of the intent."
    parts: dict[str, Rows] = {}
    for part, share, most in (("train", 13, 1000), ("test", 4, 308)):
        by_label: dict[str, Rows] = {}
        for row in _read(DATA / "banking77" / f"{part}.jsonl"):
            by_label.setdefault(row["label"], []).append(row)
        draw = random.Random(0)
        chosen = [row for rows in by_label.values() for row in draw.sample(rows, min(share, len(rows)))]
        draw.shuffle(chosen)
        parts[part] = [
            {"instruction": instruction, "input": row["text"], "output": row["label"]} for row in chosen[:most]
        ]
    files = {part: _write(f"banking77/{part}.jsonl", rows) for part, rows in parts.items()}
    return {"train": files["train"], "tests": [files["test"]], "tune": ["--epochs", "5"]}


def tatoeba() -> dict[str, Any]:
    """English to Chinese with the multilingual base model."""
    parts: dict[str, Rows] = {}
    for part, count in (("train", 1000), ("test", 200)):
        rows = random.Random(0).sample(_read(DATA / "tatoeba_cmn_eng" / f"{part}.jsonl"), count)
        parts[part] = [
            {"instruction": "Translate to Chinese.", "input": row["en"], "output": row["zh"]} for row in rows
        ]
    files = {part: _write(f"tatoeba/{part}.jsonl", rows) for part, rows in parts.items()}
    tune = ["--model", "gemma-3-270m", "--epochs", "3", "--batch-tokens", "512"]
    return {"train": files["train"], "tests": [files["test"]], "tune": tune}


JOBS: dict[str, Callable[[], dict[str, Any]]] = {
    "instruction_induction": induction,
    "banking77": banking,
    "tatoeba_cmn_eng": tatoeba,
}


def _run(command: list[str]) -> float:
    console.say("\n$ " + " ".join(command))
    started = time.time()
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    return time.time() - started


def _tuned(command: list[str], rows: str, folder: Path) -> dict[str, Any]:
    """Tune, unless the same command was run on the same rows before; what it was and how long it took."""
    note = folder.with_suffix(".json")
    wanted = {"command": " ".join(command), "rows": sha256_of(ROOT / rows)}
    if note.is_file() and (folder / "run.json").is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if wanted.items() <= known.items():
            return known
    shutil.rmtree(folder, ignore_errors=True)
    commit, dirty = commit_of_source()
    seconds = _run(command)
    known = {**wanted, "commit": commit, "dirty": dirty, "seconds": round(seconds)}
    note.write_text(json.dumps(known), encoding="utf-8")
    return known


def _without_watched(tests: list[str], folder: Path) -> None:
    """Take rows of tasks that were watched out of the tests: they are neither seen nor unseen."""
    watched = set(json.loads((folder / "run.json").read_text(encoding="utf-8"))["training"]["held_out_tasks"])
    for test in tests:
        path = ROOT / test
        rows = [row for row in _read(path) if row.get("task") not in watched]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run_job(name: str) -> dict[str, Any]:
    """Prepare, tune, evaluate; the report is kept as docs/results/<name>.json, with the commands and their times."""
    job = JOBS[name]()
    folder = BUILD / "runs" / name
    out = str(folder.relative_to(ROOT))
    tuned = _tuned(["instructrec", "tune", job["train"], "--out", out, *job["tune"]], job["train"], folder)
    _without_watched(job["tests"], folder)
    measure = ["instructrec", "evaluate", out, *job["tests"]]
    seconds = _run(measure)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if report["training"]:
        report["training"].pop("steps")  # long; metrics.jsonl has them
    for suite in report["suites"]:
        suite["worst"] = []  # the rows themselves belong to others: they stay in build/
    report["tuned"] = tuned
    report["commands"] = [tuned["command"], " ".join(measure)]
    report["wall_seconds"] = {"tune": tuned["seconds"], "evaluate": round(seconds)}
    kept = ROOT / "docs" / "results" / f"{name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return report


def table(report: dict[str, Any], suite: dict[str, Any]) -> list[str]:
    """One suite as Markdown."""
    arms = [arm for arm in report["arms"] if arm["name"] in suite["scores"]]
    pair = next(iter(suite["differences"]), None)
    head = [f"{suite['name']} ({suite['rows']} rows)", *(arm["label"] for arm in arms)]
    head += ["tuned − base"] if pair else []
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, metric in report["metrics"].items():
        found = [suite["scores"][arm["name"]].get(name) for arm in arms]
        if not all(found):
            continue
        cells = [f"{number(entry['value'], metric['unit'])} ({interval(entry, metric['unit'])})" for entry in found]
        if pair:
            change = suite["differences"][pair][name]
            cells.append(f"{change['value']:+.3g} [{change['low']:+.3g}, {change['high']:+.3g}]")
        lines.append("| " + " | ".join([metric["label"], *cells]) + " |")
    return lines


def write_page() -> None:
    """docs/results.md from the kept reports."""
    lines = [
        "# Results",
        "",
        "Made by `make results` (`bench/results.py`) on two processor cores without a GPU; one seed. In brackets: 95%",
        "bootstrap intervals over rows (1,000 resamples); they say nothing about other seeds or, for unseen tasks,",
        "about other tasks. After a run the answers of every row are in `build/results/runs/*/answers.jsonl`.",
        "Loss is in nats a token of the right answer. A model that does not end its answer is scored on all it wrote,",
        "which costs base and few-shot model dearly: how often each ended by itself stands below each table.",
        "",
    ]
    for name in JOBS:
        kept = ROOT / "docs" / "results" / f"{name}.json"
        if not kept.is_file():
            continue
        report = json.loads(kept.read_text(encoding="utf-8"))
        run, training = report["run"], report["training"]
        times = ", ".join(f"{key} {value / 60:.1f} min" for key, value in report["wall_seconds"].items())
        commits = dict.fromkeys(_commit(part) for part in (report["tuned"], report))
        watched = training["held_out_tasks"]
        lines += [f"## {name}", "", "```sh", *report["commands"], "```", ""]
        lines += [
            f"Commit {' (tuned), '.join(commits)}{' (evaluated)' if len(commits) > 1 else ''}; {run['backbone']}, "
            f"{run['method']}, {run['trained_parameters']:,} of {run['parameters']:,} parameters trained; {times}.",
            f"{run['data']['held_out']} Kept: step {training['best_step']} ({training['watch']}); "
            f"{training['stopped']}. "
            f"{training['tokens_per_second']:.0f} tokens/s in training steps, {training['padding_share']:.1%} padding."
            + (f" Rows of the watched tasks ({', '.join(watched)}) are in none of the tests." if watched else ""),
            "",
        ]
        for suite in report["suites"]:
            lines += [*table(report, suite), ""]
            notes = [note for note in suite["notes"] if note]
            lines += [f"{'; '.join(notes)}.", ""] if notes else []
            if len(suite["by_task"]) > 1:
                lines += _tasks(report, suite)
    (ROOT / "docs" / "results.md").write_text("\n".join(lines), encoding="utf-8")


def _commit(part: dict[str, Any]) -> str:
    return f"{part['commit']}{' with uncommitted changes' if part['dirty'] else ''}"


def _tasks(report: dict[str, Any], suite: dict[str, Any]) -> list[str]:
    primary = report["primary"] if report["primary"] != "accuracy" else "exact_match"
    metric = report["metrics"][primary]
    lines = [f"<details><summary>{metric['label']} by task</summary>", ""]
    arms = report["arms"]
    lines += ["| task | " + " | ".join(arm["label"] for arm in arms) + " |", "| --- |" + " ---: |" * len(arms)]
    for task, scores in sorted(suite["by_task"].items()):
        entries = [scores[arm["name"]][primary] for arm in arms]
        cells = [f"{number(entry['value'], metric['unit'])} ({interval(entry, metric['unit'])})" for entry in entries]
        lines.append(f"| {task} ({entries[0]['n']}) | " + " | ".join(cells) + " |")
    return [*lines, "", "</details>", ""]


def main() -> int:
    """Run the jobs that were asked for (default: all), then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], help="default: all")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        console.fail(f"{DATA} is not there: these results need the shared data")
        return 2
    for name in arguments.jobs or JOBS:
        run_job(name)
        write_page()
    console.say(f"\nWritten: {ROOT / 'docs' / 'results.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
