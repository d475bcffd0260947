"""`make bench-methods`: every tuning method on the same rows, steps and backbone; the tables of docs/methods.md.

    python bench/methods.py --search          # learning rates first: short runs, chosen on rows that are kept out
    python bench/methods.py                   # then each method at its best rate, on two sets
    python bench/methods.py --only lora,prefix --sets banking77
    python bench/methods.py --size tiny       # everything in a minute, on a toy model
    python bench/methods.py --only-page

Each result is a file under docs/results/methods (scores of rows, not their text); one that is there is not made again,
and a run that was killed goes on from its last checkpoint in build/methods. Two calls with other `--only` run side by
side. The search and the comparison use different seeds: the tasks that are unseen in one are learned from in the other.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reading import Job, Place, measure, tuned
from reading_data import Counts, Example, Source, generated, induction, read_jsonl, select, tiny_model, write_jsonl
from reading_page import Result, cell, watched, write_result

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.errors import InputError, InstructRecError, did_you_mean
from instructrec.files import read_json, sha256_of, write_text
from instructrec.measures.statistics import Estimate, bootstrap, paired_difference

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "docs" / "results" / "methods"
PAGE = ROOT / "docs" / "methods.md"
RESAMPLES = 2000


@dataclass(frozen=True)
class Arm:
    """A method with the settings of its own, and the learning rates that are tried.

    like: the arm whose best rate it takes, `times` as much, as long as none of its own was tried."""

    settings: dict[str, Any]
    rates: tuple[float, ...] = ()
    like: str = ""
    times: float = 1.0


ARMS = {
    "untuned": Arm({}),
    "full": Arm({"method": "full"}, (2e-5, 5e-5, 1e-4)),
    "lora": Arm({"method": "lora"}, (5e-4, 1e-3, 2e-3)),
    # Its updates are sqrt(rank) = 4 times as large.
    "lora, rslora": Arm({"method": "lora", "lora": {"rslora": True}}, (2e-4, 5e-4, 1e-3), like="lora", times=0.25),
    "lora, dora": Arm({"method": "lora", "lora": {"dora": True}}, (5e-4, 1e-3, 2e-3), like="lora"),
    "adapter": Arm({"method": "adapter"}, (5e-4, 1e-3, 2e-3)),
    "ia3": Arm({"method": "ia3"}, (1e-2, 3e-2)),
    "prefix_tuning": Arm({"method": "prefix_tuning"}, (1e-2, 3e-2, 1e-1)),
    "prompt_tuning": Arm({"method": "prompt_tuning"}, (1e-2, 3e-2, 1e-1, 3e-1)),
    "p_tuning": Arm({"method": "p_tuning"}, (1e-3, 3e-3, 1e-2)),
}
# What good initial values are worth: the same methods from random ones.
RANDOM = {
    f"{name}, random": Arm({"method": name, name: {"init": "random"}}, ARMS[name].rates, like=name)
    for name in ("prefix_tuning", "prompt_tuning")
}
ALL = ARMS | RANDOM
INTENTS = 24  # of banking77
BANKING = (
    "Which intent does this message to a bank have? Answer with the name of the intent.",
    "Name the intent of this customer's message.",
    "What does the customer want? Give the intent.",
    "Sort this message into one of the bank's intents.",
    "Tell me what this message to the bank is about, as an intent.",
    "A customer wrote this. Label it with its intent.",
)  # ours; two of them are never learned from


def banking(data: Path) -> Source:
    """Some intents of banking77 with six wordings of the question; nothing is held out but wordings."""
    rows = read_jsonl(data / "banking77" / "train.jsonl")
    intents = set(random.Random(0).sample(sorted({row["label"] for row in rows}), INTENTS))
    by_label: dict[str, list[Example]] = {}
    for row in random.Random(0).sample(rows, len(rows)):
        if row["label"] in intents:
            known = {"task": "banking77", "input": row["text"], "output": row["label"]}
            by_label.setdefault(row["label"], []).append({text: known | {"instruction": text} for text in BANKING})
    # One of each label, then the next of each: any first part of it is balanced.
    most = max(map(len, by_label.values()))
    balanced = [group[place] for place in range(most) for group in by_label.values() if place < len(group)]
    return Source({"banking77": balanced}, ((), (), ()), ())


@dataclass(frozen=True, kw_only=True)
class Set:
    """Rows of a comparison and how long is trained on them."""

    counts: Counts
    epochs: float
    title: str


SETS = {
    "instruction_induction": Set(
        counts=Counts(train=720, seen=96, wordings=96, unseen=24), epochs=2.0,
        title="12 tasks to learn from, 720 rows, 180 steps of 8 rows",
    ),
    "banking77": Set(
        counts=Counts(train=288, seen=72, wordings=48, unseen=0), epochs=2.0,
        title=f"{INTENTS} of its 77 intents, drawn; 288 rows, 72 steps of 8 rows",
    ),
    "search": Set(
        counts=Counts(train=360, seen=0, wordings=0, unseen=0, watch=8), epochs=2.0,
        title="instruction_induction, 360 rows, 90 steps of 8 rows",
    ),
    "toy": Set(counts=Counts(train=32, seen=8, wordings=8, unseen=4, wordings_of=2), epochs=1.0, title="toy rows"),
}  # fmt: skip
SOURCES = {"banking77": banking, "toy": lambda data: generated()}
VIEWS = {"seen": "seen", "unseen_wordings": "unseen wordings", "unseen_tasks": "unseen tasks"}


class Comparison:
    """One set: its rows, and a result for each method."""

    def __init__(self, name: str, model: str, data: Path, results: Path, build: Path, seed: int) -> None:
        self.name, self.set, self.seed = name, SETS[name], seed
        self.place = Place(name, results, build)
        source = SOURCES.get(name, induction)(data)
        self.model = model or str(tiny_model(build / "tiny-model", source))
        parts = select(source, seed, self.set.counts)
        parts = {part: rows for part, rows in parts.items() if not part.endswith("typos")}
        self.choosing = source.choosing
        self.files = {part: build / "data" / name / f"s{seed}" / f"{part}.jsonl" for part in parts}
        for part, rows in parts.items():
            write_jsonl(self.files[part], rows)

    def job(self, arm: str, rate: float) -> Job:
        """A method with a learning rate."""
        settings: dict[str, Any] = {
            "model": self.model,
            "seed": self.seed,
            "epochs": self.set.epochs,
            "learning_rate": rate,
            "batch_rows": 8,
            "batch_tokens": 1 << 20,  # rows alone decide what makes a step
            "held_out": "none",
            "save_steps": 50,
            "precision": "auto" if self.name != "toy" else "fp32",
        } | ALL[arm].settings
        command = "python bench/methods.py " + ("--search" if self.name == "search" else f"--sets {self.name}")
        return Job(
            arm=re.sub(r"\W+", "-", arm), seed=self.seed, rate=rate, searched=self.name == "search", settings=settings,
            data={part: sha256_of(file)[:16] for part, file in self.files.items()}, command=f"{command} --only '{arm}'",
        )  # fmt: skip

    def do(self, arm: str, rate: float) -> Result:
        """The result of a job, from its file if that is there."""
        job = self.job(arm, rate)
        target = self.place.file(job)
        if target.is_file() and (known := read_json(target))["identity"] == job.identity:
            return dict(known)
        console.say(f"\n{self.name}/{job.name}: {job.command}")
        untuned = "method" not in job.settings
        folder = Path(self.model) if untuned else self.place.run(job)
        note = {} if untuned else tuned(job, self.files["train"], folder)
        started = time.perf_counter()
        sets, own = measure(job, self.files, folder)
        commit, dirty = commit_of_source()
        result: Result = {
            "arm": arm, "seed": self.seed, "rate": rate, "model": Path(self.model).name, "command": job.command,
            "identity": job.identity, "commit": commit, "dirty": dirty, "data": job.data,
            "settings": job.settings | {"model": Path(self.model).name},
        }  # fmt: skip
        if not untuned:
            run = read_json(folder / "run.json")
            last = run["training"]["steps"][-1]
            result |= {
                "method": run["settings"].get(run["method"], {}),
                "trained_parameters": run["trained_parameters"],
                "steps": last["step"],
                "training_seconds": last["seconds"],
                "peak_memory_mb": note["peak_memory_mb"],
                "surroundings": run["surroundings"],
            }
        choosing = sorted(set(self.choosing) & set(sets.get("unseen_tasks", {}).get("tasks", ())))
        result |= {"evaluation_seconds": round(time.perf_counter() - started, 1), "choosing": choosing}
        result |= {"own": own, "sets": sets}
        write_result(target, result)
        return result

    def search(self, arm: str) -> None:
        """Each learning rate of a method; what is chosen is seen on the page."""
        for rate in ALL[arm].rates:
            self.do(arm, rate)


def best_rates(results: Path) -> dict[str, dict[float, float]]:
    """Arm -> rate -> loss on the rows for choosing, of all searches that were made."""
    found: dict[str, dict[float, float]] = {}
    for file in sorted((results / "search").glob("*.json")):
        result = read_json(file)
        found.setdefault(result["arm"], {})[result["rate"]] = watched(result)
    return found


def rate_of(arm: str, results: Path) -> float:
    """The best rate of the search, of its own or of the arm it is like. Raises InputError when there was none."""
    if not ALL[arm].rates:
        return 0.0
    tried = best_rates(results).get(arm)
    if not tried and ALL[arm].like:
        return ALL[arm].times * rate_of(ALL[arm].like, results)
    if not tried:
        raise InputError(f"'{arm}': no learning rate was searched yet (python bench/methods.py --search)")
    return min(tried, key=tried.__getitem__)


def _shown(estimate: Estimate, digits: int, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{estimate.value:{sign}.{digits}f}"
    if estimate.low == estimate.high:
        return text
    text += f" [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"
    return f"**{text}**" if signed and (estimate.low > 0 or estimate.high < 0) else text


def _clusters(clusters: Sequence[Any]) -> Sequence[Any] | None:
    """Tasks where there are several, else rows."""
    return clusters if len(set(clusters)) > 1 else None


def table(name: str, found: dict[str, Result]) -> list[str]:
    """Quality and cost of one set."""
    views = [view for view in VIEWS if any(view in result["sets"] for result in found.values())]
    head = ["method", *(f"{VIEWS[view]}, {what}" for what in ("exact", "loss") for view in views)]
    head += ["learning rate", "trained weights", "training, s", "memory, MB"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for arm, result in found.items():
        row = [arm]
        for what, digits in (("exact", 1), ("loss", 3)):
            for view in views:
                one = cell({result["seed"]: result}, view, [result["seed"]])
                statistic = one and getattr(one, what)
                estimate = statistic and bootstrap(statistic, resamples=RESAMPLES, clusters=_clusters(one.clusters))
                row.append(_shown(estimate, digits) if estimate else "")
        cost = ["", "", "", ""]
        if "steps" in result:
            cost = [f"{result['rate']:g}", f"{result['trained_parameters']:,}"]
            cost += [f"{result['training_seconds']:.0f}", f"{result['peak_memory_mb']:,}"]
        lines.append("| " + " | ".join([*row, *cost]) + " |")
    lines.append("")
    if "lora" not in found:
        return lines
    head = ["difference to lora", *(f"{VIEWS[view]}, {what}" for what in ("exact", "loss") for view in views)]
    lines += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for arm, result in found.items():
        if arm == "lora":
            continue
        row = [arm]
        for what, digits in (("exact", 1), ("loss", 3)):
            for view in views:
                one, other = (cell({each["seed"]: each}, view, [each["seed"]]) for each in (result, found["lora"]))
                if one is None or other is None or one.rows != other.rows:
                    row.append("")
                    continue
                pair = getattr(one, what), getattr(other, what)
                estimate = paired_difference(*pair, resamples=RESAMPLES, clusters=_clusters(one.clusters))
                row.append(_shown(estimate, digits, signed=True))
        lines.append("| " + " | ".join(row) + " |")
    return [*lines, ""]


def page(results: Path) -> str:
    """All tables, from the files alone."""
    lines = []
    order = list(ALL)
    for name, described in SETS.items():
        files = sorted((results / name).glob("*.json"))
        if name == "search" or not files:
            continue
        read = [read_json(file) for file in files]
        found = {result["arm"]: result for result in sorted(read, key=lambda result: order.index(result["arm"]))}
        commits = ", ".join(sorted({result["commit"] for result in read}))
        model = ", ".join(sorted({result["model"] for result in read}))
        lines += [f"### {name}", "", f"{model}; {described.title}; commits {commits}.", ""]
        lines += table(name, found)
    searched = best_rates(results)
    if searched:
        lines += ["### Learning rates tried", "", f"{SETS['search'].title}: loss on rows kept out for choosing.", ""]
        lines += ["| method | rate: loss |", "| --- | --- |"]
        for arm in [arm for arm in order if arm in searched]:
            tried = searched[arm]
            best = min(tried, key=tried.__getitem__)
            cells = [f"{rate:g}: {loss:.3f}" for rate, loss in sorted(tried.items())]
            cells = [f"**{text}**" if text.startswith(f"{best:g}:") else text for text in cells]
            lines.append(f"| {arm} | {', '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def write_page(results: Path, where: Path) -> None:
    """The tables in their place on the page, between two comments."""
    text = page(results).strip()
    before = where.read_text(encoding="utf-8") if where.is_file() else ""
    if "<!-- measured -->" in before:
        ends = r"(<!-- measured -->\n).*?(<!-- /measured -->)"
        text = re.sub(ends, lambda ends: f"{ends[1]}{text}\n{ends[2]}", before, flags=re.DOTALL)
    write_text(where, text if text.endswith("\n") else f"{text}\n")
    console.say(f"Written: {where}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the tables; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "cpu"), default="cpu")
    parser.add_argument("--search", action="store_true", help="try learning rates instead of comparing methods")
    parser.add_argument("--only", help=f"methods, separated by semicolons: {'; '.join(ALL)}")
    parser.add_argument("--sets", default="instruction_induction,banking77")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, help="default: 0 for the search, 1 for the comparison")
    parser.add_argument("--shared", type=Path, default=DATA, help="folder of the shared data")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "methods", help="folder of runs and rows")
    parser.add_argument("--only-page", action="store_true", help="make the tables from the files that are there")
    given = parser.parse_args(arguments)
    tiny = given.size == "tiny"
    results, where = (given.build / "results", given.build / "methods.md") if tiny else (OUT, PAGE)
    try:
        arms = [arm.strip() for arm in given.only.split(";")] if given.only else list(ALL)
        for arm in arms:
            if arm not in ALL:
                raise InputError(f"only: unknown '{arm}', {did_you_mean(arm, ALL)}")
        if not given.only_page:
            names = ["toy"] if tiny else ["search"] if given.search else given.sets.split(",")
            for name in names:
                model = "" if tiny else given.model
                seed = int(name != "search") if given.seed is None else given.seed
                made = Comparison(name, model, given.shared, results, given.build, seed)
                for arm in arms:
                    if name == "search":
                        made.search(arm)
                    else:
                        made.do(arm, 1e-3 if tiny else rate_of(arm, results))
        write_page(results, where)
    except InstructRecError as error:
        console.fail(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
