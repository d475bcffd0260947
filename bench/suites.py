"""`make bench-suites`: what an evaluation says of three tuned models, with every suite; docs/results/suites.md.

    python bench/suites.py                        # an hour on one core
    python bench/suites.py --only banking77
    python bench/suites.py --page                 # the page from the files that are there

Rows by seed from ../shared/data: 14 tasks of instruction_induction to learn from (four are never seen, two wordings of
each other task neither), 20 intents of banking77, and four of five sources of zh_instruct. A test file holds rows of
every kind, training rows among them, so that sorting them is measured as well. A file of figures (no text of rows) a
model lies under docs/results/suites; what is there is not done again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reading_data import Row, read_jsonl, write_jsonl

from instructrec import console, evaluate, tune
from instructrec.environment import commit_of_source
from instructrec.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "docs" / "results"
BUILD = ROOT / "build" / "suites"
UNSEEN = ("antonyms", "num_to_verbal", "singular_to_plural", "taxonomy_animal")
INTENT = "Which intent does this message to a bank have? Answer with the name of the intent."


def induction() -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and test rows: seen, new wordings, new tasks, some training rows and some Chinese ones."""
    draw, by_task = random.Random(0), {}
    wordings = read_json(DATA / "instruction_induction" / "paraphrases.json")
    for row in read_jsonl(DATA / "instruction_induction" / "rows.jsonl"):
        by_task.setdefault(row["task"], []).append(row)

    def worded(rows: Sequence[Row], texts: Sequence[str]) -> list[Row]:
        return [
            {name: row.get(name) for name in ("task", "input", "output")}
            | {"instruction": draw.choice(texts), "alternatives": row.get("alternatives", [])}
            for row in rows
        ]

    train: list[Row] = []
    test: list[Row] = []
    for task, rows in sorted(by_task.items()):
        draw.shuffle(rows)
        known, new = wordings[task][:-2], wordings[task][-2:]
        if task in UNSEEN:
            test += worded(rows[:15], known)
            continue
        train += worded(rows[14 : min(len(rows), 74)], known)
        test += worded(rows[:7], known) + worded(rows[7:14], new)
    test += train[::60]
    chinese = [row for row in read_jsonl(DATA / "zh_instruct" / "train.jsonl") if len(row["input"]) < 100]
    short = [row for row in chinese if len(row["output"]) < 30]
    return train, test + [_plain(row) for row in draw.sample(short, 15)]


def banking() -> tuple[list[Row], list[Row]]:
    """Twenty intents, twenty rows of each."""
    draw, by_label = random.Random(0), {}
    for row in read_jsonl(DATA / "banking77" / "train.jsonl"):
        by_label.setdefault(row["label"], []).append(row)
    labels = sorted(by_label)[:20]
    train = [row for label in labels for row in by_label[label][:20]]
    test = [row for row in read_jsonl(DATA / "banking77" / "test.jsonl") if row["label"] in labels]
    made = [
        [{"instruction": INTENT, "input": row["text"], "output": row["label"]} for row in rows]
        for rows in (train, test)
    ]
    return made[0], draw.sample(made[1], 120)


def chinese() -> tuple[list[Row], list[Row]]:
    """Short rows of the sources; the third largest source is another domain."""
    draw, by_source = random.Random(0), {}
    for row in read_jsonl(DATA / "zh_instruct" / "train.jsonl"):
        if len(row["input"]) + len(row["instruction"]) < 120 and len(row["output"]) < 40:
            by_source.setdefault(row["source"], []).append(row)
    train: list[Row] = []
    test: list[Row] = []
    for place, source in enumerate(sorted(by_source, key=lambda source: -len(by_source[source]))):
        rows = [_plain(row) | {"source": source} for row in draw.sample(by_source[source], len(by_source[source]))]
        test += rows[:20] if place == 2 else rows[:10]
        train += [] if place == 2 else rows[10:90]
    return train, test + train[::80]


def _plain(row: Row) -> Row:
    return {name: row[name] for name in ("instruction", "input", "output")}


SETS: dict[str, tuple[Callable[[], tuple[list[Row], list[Row]]], dict[str, Any]]] = {
    "instruction_induction": (induction, {"max_steps": 150}),
    "banking77": (banking, {"max_steps": 100}),
    "zh_instruct": (chinese, {"model": "gemma-3-270m", "max_steps": 40}),
}
MEASURED = {"suites": "bias,constraints,forgetting", "rows": 24, "robustness_rows": 24, "max_new_tokens": 24}


def run(name: str) -> dict[str, Any]:
    """Tune, unless that was done, and evaluate; the figures."""
    make, settings = SETS[name]
    folder = BUILD / name
    draw = random.Random(1)
    for part, rows in zip(("train", "test"), make(), strict=True):
        write_jsonl(folder / f"{part}.jsonl", draw.sample(rows, len(rows)))
    commit, dirty = commit_of_source()
    started = time.time()
    if not (folder / "run" / "run.json").is_file():
        tune(folder / "train.jsonl", out=str(folder / "run"), eval_rows=24, **settings)
    tuned = time.time()
    found = evaluate(folder / "run", folder / "test.jsonl", out=str(folder / "report"), **MEASURED)
    report = dict(found.report)
    kept = {key: report[key] for key in ("arms", "metrics", "primary", "interval", "bias", "forgetting", "summary")}
    kept["run"] = {key: report["run"][key] for key in ("method", "trained_parameters", "data")}
    left = ("file", "sha256", "worst", "by_task")
    kept["suites"] = [{key: part for key, part in suite.items() if key not in left} for suite in report["suites"]]
    for suite in kept["suites"]:
        suite["overlap"] = {key: part for key, part in suite["overlap"].items() if key != "near_examples"}
    damage = report["robustness"]
    kept["robustness"] = {
        key: damage[key] for key in ("suite", "arms", "perturbations", "worst_case", "rows", "clusters")
    }
    kept["constraints"] = {key: part for key, part in report["constraints"].items() if key != "examples"}
    kept["seconds"] = {"tune": round(tuned - started), "evaluate": round(time.time() - tuned)}
    command = f"python bench/suites.py --only {name}"
    return {"set": name, "command": command, "commit": commit, "dirty": dirty, "measured": MEASURED} | kept


def _cell(one: dict[str, Any] | None, digits: int = 1) -> str:
    if one is None or one.get("value") is None:
        return "–"
    return f"{one['value']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def section(result: dict[str, Any]) -> list[str]:
    """One model's tables."""
    arms = [arm["name"] for arm in result["arms"]]
    seconds, method = result["seconds"], result["run"]["method"]
    dirty = " with uncommitted changes" if result["dirty"] else ""
    told = f"`{result['command']}`, commit {result['commit']}{dirty}; {method}, {result['run']['trained_parameters']:,}"
    told += f" weights trained; tuning {seconds['tune']} s, evaluating {seconds['evaluate']} s."
    lines = [f"## {result['set']}", "", told]
    lines += ["", *[f"> {sentence}" for sentence in result["summary"]["en"]], ""]
    rows = []
    for suite in result["suites"]:
        names = [name for name in ("accuracy", "exact_match") if name in suite["scores"][arms[0]]][:1]
        for name in [*names, "loss"]:
            metric = result["metrics"][name]["label"]
            scores = [_cell(suite["scores"][arm].get(name), 2 if name == "loss" else 1) for arm in arms]
            guesses = suite.get("references") or {}
            guessed = [(guesses.get(guess) or {}).get(name) for guess in ("chance", "majority")]
            scores += ["–" if value is None else f"{value:.1f}" for value in guessed]
            rows.append([f"{suite['kind']} ({suite['rows']})", metric, *scores, suite["clusters"]])
        if ranked := suite.get("ranked"):
            scores = [_cell((ranked.get(arm) or {}).get("accuracy")) for arm in arms]
            rows.append(
                [f"{suite['kind']} ({suite['rows']})", "labels ranked, accuracy", *scores, "", "", suite["clusters"]]
            )
    lines += _table(["suite (rows)", "measure", *arms, "chance", "majority", "interval over"], rows)
    damage, rows = result["robustness"], []
    for one in damage["perturbations"]:
        changes = [_cell(one["difference"].get(arm)) for arm in damage["arms"]]
        rows.append(
            [f"{one['label']} ({one['rows']})", *changes, *(_cell(one["flips"].get(arm)) for arm in damage["arms"])]
        )
    head = ["damage (rows)", *damage["arms"], *(f"{arm}, flips" for arm in damage["arms"])]
    lines += [f"Points lost or won under damage of {damage['suite']}, and share of answers that change:", ""]
    lines += _table(head, rows)
    rows = [[one["label"], *(_cell(one["arm"].get(arm)) for arm in arms)] for one in result["bias"] or []]
    lines += ["Bias, percent (0: none):", "", *_table(["check", *arms], rows)] if rows else []
    scores = result["constraints"]["scores"]
    rows = [[name, *(_cell(scores[arm].get(name)) for arm in arms if arm in scores)] for name in ("all", "each")]
    lines += ["Constraints kept, percent:", "", *_table(["of", *[arm for arm in arms if arm in scores]], rows)]
    lost = result["forgetting"]["loss"]["difference"]
    lines += [f"Forgetting: loss on general questions {_cell(lost, 2)} nats a token after tuning, less before."]
    return [*lines, ""]


def page(results: Path) -> str:
    """All models' tables, from the files."""
    lines = [
        "# Suites on real rows",
        "",
        "Made by `make bench-suites`; 95% bootstrap intervals in brackets, one seed each.",
        "",
    ]
    for name in SETS:
        if (results / f"{name}.json").is_file():
            lines += section(read_json(results / f"{name}.json"))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SETS))
    parser.add_argument("--page", action="store_true", help="make the page from the files that are there")
    given = parser.parse_args(arguments)
    for name in [] if given.page else [given.only] if given.only else SETS:
        if not (OUT / "suites" / f"{name}.json").is_file():
            (OUT / "suites").mkdir(parents=True, exist_ok=True)
            write_json(OUT / "suites" / f"{name}.json", run(name))
    write_text(OUT / "suites.md", page(OUT / "suites"))
    console.say(f"Written: {OUT / 'suites.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
