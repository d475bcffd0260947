"""`make bench-prompting`: a model that is only asked, in five ways, beside soft prompts and tuning, on four sets.

    python bench/prompting.py                                  # all arms on all sets with smollm2-135m
    python bench/prompting.py --only zero_shot,few_shot --sets banking77
    python bench/prompting.py --rows 20 --train 40 --epochs 1  # a quick look
    python bench/prompting.py --only-page

Every arm answers the same test rows: labels by likelihood, short answers generated. Solved examples, validation rows of
the search and training rows all come out of the same training rows. One file of scores an arm and set under
docs/results/prompting (no text of rows), from which docs/results/prompting.md is made; what is there already is not
done again, and tuning goes on from its last checkpoint in build/prompting. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reading_data import Row, read_jsonl, write_jsonl
from reading_page import write_result

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.errors import InstructRecError
from instructrec.files import read_json, sha256_of, write_text

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "docs" / "results" / "prompting"
SHOTS = 4
LABELS = 10  # of banking77, the first of its list
INDUCTION = ("antonyms", "first_word_letter", "singular_to_plural", "sum", "negation", "translation_en-de")

# Asking only. Settings of `instructrec prompt`.
ASKED: dict[str, dict[str, Any]] = {
    "zero_shot": {},
    "calibrated": {"calibrate": "contextual"},
    "few_shot": {"shots": SHOTS, "by": "bm25"},
    "few_shot_calibrated": {"shots": SHOTS, "by": "bm25", "calibrate": "contextual"},
    "searched": {"shots": SHOTS, "by": "bm25", "search": True, "search_rows": 80},
}
# Training; settings of `instructrec tune`.
TUNED: dict[str, dict[str, Any]] = {"prompt_tuning": {}, "lora": {}}
TITLES = {
    "zero_shot": "asked once, first wording",
    "calibrated": "the same, calibrated (contextual)",
    "few_shot": f"{SHOTS} nearest examples (BM25)",
    "few_shot_calibrated": "the same, calibrated",
    "searched": "searched: wording, words, examples, calibration",
    "prompt_tuning": "soft prompt (`--method prompt_tuning`)",
    "lora": "tuned (`--method lora`)",
}


@dataclass(frozen=True)
class Set:
    """What is asked. rows(data): training rows and test rows.  template: family whose first wording is asked.
    ranked: the answers are labels."""

    title: str
    template: str
    rows: Callable[[Path], tuple[list[Row], list[Row]]]
    ranked: bool = True


def _sentfin(data: Path) -> tuple[list[Row], list[Row]]:
    parts = []
    for name in ("train", "test"):
        rows = read_jsonl(data / "sentfin" / f"{name}.jsonl")
        single = [row for row in rows if len(set(row["entities"].values())) == 1]
        parts.append([{"text": row["text"], "label": next(iter(row["entities"].values()))} for row in single])
    return parts[0], parts[1]


def _banking(data: Path) -> tuple[list[Row], list[Row]]:
    labels = read_json(data / "banking77" / "labels.json")[:LABELS]
    train, test = (
        [row for row in read_jsonl(data / "banking77" / f"{name}.jsonl") if row["label"] in labels]
        for name in ("train", "test")
    )
    return train, test


def _subjects(data: Path) -> tuple[list[Row], list[Row]]:
    rows = [row for row in read_jsonl(data / "zh_instruct" / "train.jsonl") if row["source"] == "csl-category"]
    found = [{"text": row["input"], "label": row["output"]} for row in rows]
    random.Random(0).shuffle(found)
    half = len(found) // 2
    known = {row["label"] for row in found[:half]}
    return found[:half], [row for row in found[half:] if row["label"] in known]


def _induction(data: Path) -> tuple[list[Row], list[Row]]:
    folder = data / "instruction_induction"
    wordings = read_json(folder / "paraphrases.json")
    by_task: dict[str, list[Row]] = {}
    for row in read_jsonl(folder / "rows.jsonl"):
        by_task.setdefault(row["task"], []).append({**row, "instruction": wordings[row["task"]][0]})
    train: list[Row] = []
    test: list[Row] = []
    for task in INDUCTION:
        rows = by_task.get(task, [])
        random.Random(0).shuffle(rows)
        train, test = train + rows[: len(rows) // 2], test + rows[len(rows) // 2 :]
    return train, test


SETS = {
    "sentfin": Set("sentiment of headlines, 3 labels", "sentiment-en", _sentfin),
    "banking77": Set(f"{LABELS} intents of banking77", "classification-en", _banking),
    "csl_category": Set("subjects of Chinese papers", "classification-zh", _subjects),
    "instruction_induction": Set(f"{len(INDUCTION)} tasks with short answers", "", _induction, ranked=False),
}
# Three wordings of a row that brings its own instruction.
WORDINGS = """\
wordings:
  row: {instruction: "{{ instruction }}", input: "{{ input }}"}
  named: {instruction: "{{ instruction }}\\n\\nInput: {{ input }}", answer: "Output: {{ answer }}"}
  brief: {instruction: "{{ instruction }} Write only the answer.", input: "{{ input }}"}
"""


def _drawn(rows: list[Row], count: int, seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, count) if len(rows) > count else rows


class Comparison:
    """One set and what is asked and tuned on it."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.set, self.given = name, SETS[name], arguments
        self.build = Path(arguments.build) / Path(arguments.model).name / name
        train, test = self.set.rows(arguments.data)
        self.files = {"train": self.build / "train.jsonl", "test": self.build / "test.jsonl"}
        write_jsonl(self.files["train"], _drawn(train, arguments.train, arguments.seed))
        write_jsonl(self.files["test"], _drawn(test, arguments.rows, arguments.seed))
        self.template = self.set.template
        if not self.template:
            self.template = str(self.build / "instruction.yaml")
            write_text(Path(self.template), WORDINGS)

    def result(self, arm: str) -> dict[str, Any]:
        """Ask (after tuning, where the arm is tuned) and say what came of it."""
        started = time.time()
        if arm in ASKED:
            found = self._ask(arm, self.given.model, self.template, self.files, ASKED[arm])
        else:
            files = self._through_the_template()
            folder = self._tune(arm, files["train"])
            found = self._ask(arm, str(folder), "row", files, {})
        result = found.result
        scores = result["scores"][result["primary"]]
        return {
            "metric": result["primary"],
            **{name: round(scores[name], 4) for name in ("value", "low", "high")},
            "rows": result["rows"],
            "examples": result["examples"],
            "right": [int(normal(a) == normal(b)) for a, b in self._pairs(found)],
            "majority": round(result["baselines"]["majority"]["value"], 4),
            "chance": result["baselines"].get("chance"),
            "way": result["way"],
            "shots_shown": result["shots_shown"],
            "tried": len(result["tried"]),
            "precision": result["precision"],
            "seconds": round(time.time() - started, 1),
        }

    def wanted(self, arm: str) -> dict[str, Any]:
        """What a result file has to say to be the one that is asked for."""
        options = {"rows": self.given.rows, "train": self.given.train, "seed": self.given.seed}
        options |= {"epochs": self.given.epochs} if arm in TUNED else {}
        flags = " ".join(f"--{name} {value}" for name, value in options.items())
        command = f"python bench/prompting.py --model {Path(self.given.model).name} --sets {self.name} --only {arm}"
        digest = {part: sha256_of(file)[:16] for part, file in self.files.items()}
        return {"set": self.name, "arm": arm, "command": f"{command} {flags}", "data": digest}

    def _pairs(self, found: Any) -> list[tuple[str, str]]:
        rows = read_jsonl(found.folder / "rows.jsonl")
        return [(row["expected"], row["answer"]) for row in rows]

    def _ask(self, arm: str, model: str, template: str, files: dict[str, Path], settings: dict[str, Any]) -> Any:
        from instructrec import prompt
        from instructrec.prompts.tasks import find

        ranked = self.set.ranked
        given: dict[str, Any] = {"model": model, "seed": self.given.seed, "score": "rank" if ranked else "generate"}
        given |= {key: value for key, value in settings.items() if ranked or key != "calibrate"}
        given["examples"] = str(files["train"])
        name = template if given.get("search") else find(template)[0].name
        if template.endswith(".yaml") and not given.get("search"):
            first = self.build / "first.yaml"
            write_text(first, "\n".join(WORDINGS.splitlines()[:2]) + "\n")
            name = str(first)
        return prompt(name, str(files["test"]), out=str(self.build / arm), **given)

    def _through_the_template(self) -> dict[str, Path]:
        """The rows as the first wording asks them, with the labels' words as answers: what is tuned on."""
        from instructrec import read
        from instructrec.measures.metrics import label_set
        from instructrec.prompts.tasks import find
        from instructrec.prompts.verbalizer import Verbalizer

        task = find(self.template)[0]
        records = {part: read(str(file)).records for part, file in self.files.items()}
        every = [record.answer for part in records.values() for record in part]
        words = Verbalizer.of(label_set(every) or ()) if self.set.ranked else None
        shown = [words.shown(label) for label in words.labels] if words else []
        files = {}
        for part, rows in records.items():
            made = [(task.ask(row, shown), words.shown(row.answer) if words else row.answer) for row in rows]
            files[part] = self.build / f"{part}-asked.jsonl"
            lines = [{"instruction": one.instruction, "input": one.input, "output": answer} for one, answer in made]
            write_jsonl(files[part], lines)
        return files

    def _tune(self, arm: str, rows: Path) -> Path:
        from instructrec import tune
        from instructrec.inference.loading import is_run

        given = {"model": self.given.model, "epochs": self.given.epochs, "seed": self.given.seed, "method": arm}
        folder = self.build / f"run-{arm}-{sha256_of(rows)[:8]}-{self.given.epochs:g}-{self.given.seed}"
        if not is_run(str(folder)):
            given |= {"held_out": "none", "tensorboard": False, "resume": folder.exists()} | TUNED[arm]
            tune(str(rows), out=folder, **given)
        return folder


def normal(text: str) -> str:
    """As exact match compares."""
    from instructrec.measures.text import normalise

    return normalise(text)


def page(results: Path, target: Path) -> Path:
    """The table of all result files."""
    found = [read_json(file) for file in sorted(results.glob("*.json"))]
    lines = ["# Asked, shown examples, searched, tuned", ""]
    lines += [
        "Made by `make bench-prompting` from the files in [prompting/](prompting/); percent, 95% bootstrap intervals.",
        "Accuracy of the likeliest label, for `instruction_induction` exact match of the answer. Examples, the rows of",
        "the search and the rows of the tuned models are the same training rows.",
    ]
    for model in sorted({one["model"] for one in found}):
        own = [one for one in found if one["model"] == model]
        sets = [name for name in SETS if any(one["set"] == name for one in own)]
        lines += ["", f"## {model}", "", "| | " + " | ".join(f"`{name}`" for name in sets) + " |"]
        lines += ["| --- |" + " --- |" * len(sets)]
        table = {(one["set"], one["arm"]): one for one in own}
        first = {name: next(one for one in own if one["set"] == name) for name in sets}
        rows = [("test rows", lambda one: f"{one['rows']}"), ("training rows", lambda one: f"{one['examples']}")]
        rows += [("guessing", lambda one: f"{one['chance']:.1f}" if one["chance"] else "–")]
        rows += [("always the most frequent", lambda one: f"{one['majority']:.1f}")]
        lines += [f"| {title} | " + " | ".join(show(first[name]) for name in sets) + " |" for title, show in rows]
        for arm, title in TITLES.items():
            cells = [_cell(table.get((name, arm))) for name in sets]
            lines += [f"| {title} | " + " | ".join(cells) + " |"] * any(cell != "–" for cell in cells)
        lines += ["", "What the search took:", ""] if any((name, "searched") in table for name in sets) else []
        for name in sets:
            if one := table.get((name, "searched")):
                way = ", ".join(f"{key} {value}" for key, value in one["way"].items() if value not in ("", False))
                lines += [f"- `{name}`, of {one['tried']} ways: {way}"]
        spent = {arm: sum(one["seconds"] for one in own if one["arm"] == arm) / 60 for arm in TITLES}
        lines += [
            "",
            "Minutes, tuning included: " + ", ".join(f"{arm} {time:.1f}" for arm, time in spent.items() if time),
        ]
    write_text(target, "\n".join(lines) + "\n")
    return target


def _cell(one: dict[str, Any] | None) -> str:
    return f"{one['value']:.1f} ({one['low']:.0f}–{one['high']:.0f})" if one else "–"


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not there yet, a file at a time."""
    for name in arguments.sets.split(","):
        comparison = Comparison(name, arguments)
        for arm in arguments.only.split(","):
            if arm.endswith("calibrated") and not comparison.set.ranked:
                continue
            file = Path(arguments.results) / f"{Path(arguments.model).name}-{name}-{arm}.json"
            wanted = comparison.wanted(arm)
            if file.is_file() and wanted.items() <= read_json(file).items():
                console.say(f"{file.name}: there already")
                continue
            commit, dirty = commit_of_source()
            about = {"model": Path(arguments.model).name, "commit": commit, "dirty": dirty}
            result = comparison.result(arm)
            write_result(file, wanted | about | result)
            console.say(f"{file.name}: {result['value']:.1f} in {result['seconds']:.0f} s")


def main(given: Sequence[str] | None = None) -> int:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or folder")
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--only", default=",".join(TITLES), help=f"arms, of {', '.join(TITLES)}")
    parser.add_argument("--rows", type=int, default=200, help="test rows of a set at most")
    parser.add_argument("--train", type=int, default=200, help="training rows of a set at most")
    parser.add_argument("--epochs", type=float, default=4.0, help="of the tuned arms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "prompting", help="folder of the runs")
    parser.add_argument("--only-page", action="store_true", help="make the page from the files that are there")
    arguments = parser.parse_args(given)
    for flag, known in (("sets", SETS), ("only", TITLES)):
        if unknown := [name for name in getattr(arguments, flag).split(",") if name not in known]:
            parser.error(f"--{flag}: unknown {', '.join(unknown)} (known: {', '.join(known)})")
    try:
        if not arguments.only_page:
            run(arguments)
        target = page(arguments.results, arguments.results.with_suffix(".md"))
    except InstructRecError as error:
        console.fail(str(error))
        return error.exit_code
    console.say(f"Written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
