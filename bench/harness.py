"""`python bench/harness.py`: InstructRec beside lm-evaluation-harness on the same model, rows and prompts.

    python bench/harness.py --harness-python VENV/bin/python   # ten minutes on one core
    python bench/harness.py --size tiny --out FOLDER           # to try it: our side on a tiny random model
    python bench/harness.py --page                             # the page from the result file that is there

Two task files are written for the harness: `multiple_choice` (ten intents of banking77 ranked by likelihood) and
`generate_until` (the same rows behind a solved example of each intent). Model in fp32, one thread. Prompts end without
a space and labels begin with one, which is how the harness joins them. The harness's rows are compared with ours row by
row; every prediction or text that differs, and every log-likelihood that is further away than TOLERANCE, is listed with
its cause. Speed is measured in the same run: sides take turns, other rows each round, ratios are medians of the rounds'
ratios. The harness is no part of this project (lm-eval 0.4.13): --harness-python names a Python that has it, without
which only our side and the plain loops are measured. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from answer import Times, loop, passes, ratio, timed
from reading_data import generated, read_jsonl, tiny_model

from instructrec import console
from instructrec.data.records import Record
from instructrec.environment import commit_of_source
from instructrec.files import read_json, write_json, write_text
from instructrec.inference.engine import Sampling, generate
from instructrec.inference.loading import Loaded, open_target
from instructrec.inference.ranking import Candidates, likelihoods
from instructrec.prompts.template import Rendered

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "docs" / "results"
SIDE = Path(__file__).with_name("harness_side.py")
TOLERANCE = 1e-3  # nats
BATCH = 16  # rows that the harness reads at once where it is timed with a batch
# An answer stands behind its prompt with one space, as the harness joins them.
TEMPLATE = (
    "{% for m in messages %}{{ ' ' + m.content + eos_token if m.role == 'assistant' else m.content }}{% endfor %}"
)
ASKED = "Message to a bank: {}\nIntent of the message:"
SHORT = 60  # characters that a solved example has at most
FIRST_LINE = r"\s*([^\n]+)"
Row = dict[str, Any]  # id, prompt, label
Found = dict[str, Any]  # id, right, and scores or text


@dataclass(frozen=True)
class Size:
    """labels: that are chosen from.  ranked, written: rows of a round.  tokens: of a generated answer at most."""

    labels: int
    ranked: int
    written: int
    tokens: int
    rounds: int


SIZES = {"cpu": Size(10, 16, 16, 12, 3), "tiny": Size(3, 4, 4, 6, 2)}


@dataclass(frozen=True)
class Task:
    """kind: ranked or written.  rows: all rounds' rows, `count` of a round."""

    kind: str
    rows: list[Row]
    labels: list[str]
    count: int
    tokens: int

    @property
    def name(self) -> str:
        """Of the harness's task."""
        return f"instructrec_{self.kind}"

    def part(self, number: int) -> range:
        """Numbers of the rows of a round."""
        return range(number * self.count, (number + 1) * self.count)

    def file(self, data: Path, eos: str) -> dict[str, Any]:
        """The harness's task file."""
        told: dict[str, Any] = {
            "task": self.name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
        }
        if self.kind == "ranked":
            told |= {"output_type": "multiple_choice", "doc_to_choice": self.labels, "doc_to_target": "{{number}}"}
            return told | {"target_delimiter": " ", "metric_list": [{"metric": "acc"}]}
        told |= {"output_type": "generate_until", "doc_to_target": "{{label}}"}
        told["generation_kwargs"] = {"until": [eos], "do_sample": False, "max_gen_toks": self.tokens}
        pick = {"function": "regex", "regex_pattern": FIRST_LINE, "group_select": 0}
        told["filter_list"] = [{"name": "first_line", "filter": [pick, {"function": "take_first"}]}]
        return told | {"metric_list": [{"metric": "exact_match", "ignore_case": True}]}


def banking(data: Path, size: Size) -> tuple[list[Row], list[str], dict[str, str]]:
    """Short messages with their intent in words, the intents, and a training message of each."""
    rows = read_jsonl(data / "banking77" / "test.jsonl")
    draw = random.Random(0)
    names = sorted({row["label"] for row in rows if re.fullmatch(r"[a-z_]+", row["label"])})
    labels = sorted(draw.sample(names, size.labels))
    mine = [{"id": number, **row} for number, row in enumerate(rows) if row["label"] in labels]
    draw.shuffle(mine)
    words = [label.replace("_", " ") for label in labels]
    solved: dict[str, str] = {}
    for row in read_jsonl(data / "banking77" / "train.jsonl"):
        if row["label"] in labels and len(row["text"]) < SHORT:
            solved.setdefault(row["label"].replace("_", " "), row["text"].strip())
    return [{**row, "label": row["label"].replace("_", " ")} for row in mine], words, solved


def toys(_: Path, size: Size) -> tuple[list[Row], list[str], dict[str, str]]:
    """Words and what is done with them."""
    tasks = sorted(generated().tasks.items())[: size.labels]
    pairs = [(name, next(iter(one.values()))) for name, examples in tasks for one in examples]
    random.Random(0).shuffle(pairs)
    rows = [{"id": at, "text": row["output"], "label": f"do {name}"} for at, (name, row) in enumerate(pairs)]
    return rows, [f"do {name}" for name, _ in tasks], {f"do {name}": "house" for name, _ in tasks}


def tasks_of(rows: Sequence[Row], labels: list[str], solved: dict[str, str], size: Size) -> list[Task]:
    """The same rows to be ranked and to be written."""
    number = {label: at for at, label in enumerate(labels)}
    shown = "".join(f"{ASKED.format(text)} {label}\n" for label, text in sorted(solved.items()))
    made = []
    for kind, count, before in (("ranked", size.ranked, ""), ("written", size.written, shown)):
        some = [
            {"id": row["id"], "label": row["label"], "number": number[row["label"]],
             "prompt": before + ASKED.format(row["text"].strip())}
            for row in rows[: count * size.rounds]
        ]  # fmt: skip
        made.append(Task(kind, some, labels, min(count, len(some) // size.rounds), size.tokens))
    return made


@dataclass
class Harness:
    """A process that holds the harness and its model."""

    process: subprocess.Popen[str]
    versions: dict[str, str] = field(default_factory=dict)

    def ask(self, task: Task, samples: Sequence[int], batch: int) -> dict[str, Any]:
        """One evaluation."""
        assert self.process.stdin is not None
        job = {"task": task.name, "kind": task.kind, "samples": list(samples), "batch": batch}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next line that it says. Raises RuntimeError where it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{SIDE.name} ended with {self.process.wait()}; what it wrote stands above")
        told: dict[str, Any] = json.loads(line)
        return told


@contextmanager
def harness(python: str, model: Path, tasks: Sequence[Task], eos: str) -> Iterator[Harness]:
    """The harness with our task files and rows, in a folder of its own and without network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in tasks:
            rows = folder / f"{task.name}.json"
            write_text(rows, "".join(json.dumps(row) + "\n" for row in task.rows))
            # JSON is YAML, and what the harness reads is the ending.
            write_text(folder / "tasks" / f"{task.name}.yaml", json.dumps(task.file(rows, eos), indent=1))
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "THP_MEM_ALLOC_ENABLE": "1"}
        environment = os.environ | offline | threads | {"HF_HOME": str(folder / "home")}
        given = json.dumps({"model": str(model), "tasks": str(folder / "tasks")})
        command = [python, str(SIDE), given]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            one = Harness(process)
            one.versions = one.read()
            yield one
            assert process.stdin is not None
            process.stdin.close()


@dataclass(frozen=True)
class Ours:
    """Our side and the plain loops."""

    loaded: Loaded

    def ranked(self, task: Task, numbers: Sequence[int]) -> list[Found]:
        """Labels by `likelihoods`: the prompt is read once."""
        rows, candidates = [task.rows[number] for number in numbers], self.candidates(task)
        prompts = [self.prompt(row) for row in rows]
        scores = likelihoods(self.loaded.model, prompts, candidates, pad_id=self.loaded.backbone.pad_id).tolist()
        return [self.scored(task, *pair) for pair in zip(rows, scores, strict=True)]

    def passes(self, task: Task, numbers: Sequence[int]) -> list[Found]:
        """The same by one pass a label."""
        candidates = self.candidates(task)
        whole = candidates.ids
        rows = [task.rows[number] for number in numbers]
        return [self.scored(task, row, passes(self.loaded, self.prompt(row).ids, whole)) for row in rows]

    def scored(self, task: Task, row: Row, scores: Sequence[float]) -> Found:
        """A row with what its labels score, and the ids of both sides of the boundary."""
        candidates, prompt = self.candidates(task), self.prompt(row).ids
        tokens = [[prompt, list(ids)] for ids in candidates.ids]
        return {
            "id": row["id"],
            "scores": list(scores),
            "right": best(scores) == row["number"],
            "tokens": tokens,
        }

    def generate(self, task: Task, numbers: Sequence[int]) -> list[Found]:
        """Answers by `generate`, batched by length."""
        rows = [task.rows[number] for number in numbers]
        found = generate(
            self.loaded.model,
            [self.prompt(row) for row in rows],
            stop_ids=self.loaded.stop_ids,
            pad_id=self.loaded.backbone.pad_id,
            sampling=Sampling(max_new_tokens=task.tokens),
        )
        return [self.written(row, one.ids) for row, one in zip(rows, found, strict=True)]

    def loop(self, task: Task, numbers: Sequence[int]) -> list[Found]:
        """The same by `model.generate`, one prompt at a time."""
        rows = [task.rows[number] for number in numbers]
        found = loop(self.loaded, [self.prompt(row).ids for row in rows], task.tokens)
        return [self.written(row, ids) for row, ids in zip(rows, found, strict=True)]

    def written(self, row: Row, ids: list[int]) -> Found:
        """A row with its answer; right by the first line, as the harness's filter takes it."""
        text = self.loaded.renderer.decode(ids)
        line = re.search(FIRST_LINE, text)
        right = line is not None and line[1].strip().lower() == row["label"].lower()
        return {"id": row["id"], "text": text, "tokens": ids, "prompt": self.prompt(row).ids, "right": right}

    def prompt(self, row: Row) -> Rendered:
        """A row's prompt."""
        return self.loaded.renderer.prompt(Record.of(row["prompt"]))

    def candidates(self, task: Task) -> Candidates:
        """The labels, whole: what they all begin with counts too and their end doesn't, as in the harness."""
        some = Candidates.of(self.loaded.renderer, [Record.of("x", label) for label in task.labels], ended=False)
        return Candidates((), tuple(some.lead + ids for ids in some.ids))

    @torch.inference_mode()
    def margin(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """By how many logits the first choice after prompt and answer is ahead of the second."""
        logits = self.loaded.model(torch.tensor([[*prompt, *answer]]), use_cache=False, logits_to_keep=1).logits
        first, second = logits[0, -1].float().topk(2).values.tolist()
        return float(first - second)


def best(scores: Sequence[float]) -> int:
    """The number of the largest; the first of equals, as the harness takes it."""
    return max(range(len(scores)), key=lambda at: (scores[at], -at))


def differences(
    kind: str,
    ours: Sequence[Found],
    theirs: Sequence[Found],
    margin: Callable[[Sequence[int], Sequence[int]], float] = lambda prompt, answer: float("inf"),
) -> list[dict[str, Any]]:
    """Rows on which two sides differ, each with the cause: `tokens` (another cut between or within prompt and answer),
    `near tie` (two choices closer to each other than TOLERANCE), or `unexplained`."""
    other = {row["id"]: row for row in theirs}
    if other.keys() != {row["id"] for row in ours}:
        raise ValueError("the two sides have other rows")
    return [
        found for one in ours if (found := (_ranked if kind == "ranked" else _written)(one, other[one["id"]], margin))
    ]


def _ranked(one: Found, two: Found, _: Any) -> dict[str, Any] | None:
    apart = max(abs(a - b) for a, b in zip(one["scores"], two["scores"], strict=True))
    picked = [best(one["scores"]), best(two["scores"])]
    if apart <= TOLERANCE and picked[0] == picked[1]:
        return None
    first, second = sorted(one["scores"], reverse=True)[:2]
    if one["tokens"] != two["tokens"]:
        cause = "tokens"
    else:
        cause = "near tie" if apart <= TOLERANCE and first - second <= TOLERANCE else "unexplained"
    return {"id": one["id"], "picked": picked, "nats_apart": apart, "ahead": first - second, "cause": cause}


def _written(one: Found, two: Found, margin: Callable[..., float]) -> dict[str, Any] | None:
    if one["text"].strip() == two["text"].strip() and one["right"] == two["right"]:
        return None
    told = {"id": one["id"], "right": [one["right"], two["right"]]}
    if one["prompt"] != two["prompt"]:
        return told | {"cause": "tokens"}
    mine, yours = one["tokens"], two["tokens"] or []
    at = next((at for at, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b), min(len(mine), len(yours)))
    ahead = margin(one["prompt"], mine[:at])
    return told | {"token": at, "ahead": ahead, "cause": "near tie" if ahead <= TOLERANCE else "unexplained"}


def measure(ours: Ours, task: Task, rounds: int, beside: Harness | None) -> dict[str, Any]:
    """All sides on one task; the first round is done twice, once to warm up on its first row."""
    mine = (ours.ranked, ours.passes) if task.kind == "ranked" else (ours.generate, ours.loop)
    names = ("ours", "passes" if task.kind == "ranked" else "loop")
    sides: dict[str, Callable[[Sequence[int]], tuple[float, float, list[Found]]]] = {
        name: lambda numbers, work=work: timed(lambda: work(task, numbers))  # type: ignore[misc]
        for name, work in zip(names, mine, strict=True)
    }
    accuracies: dict[str, list[float]] = {}
    if beside is not None:
        for batch in (1, BATCH):
            name = f"harness_{batch}"
            accuracies[name] = []

            def asked(numbers: Sequence[int], batch: int = batch, name: str = name) -> tuple[float, float, Any]:
                told = beside.ask(task, numbers, batch)
                accuracies[name].append(told["accuracy"])
                return told["wall"], told["processor"], told["rows"]

            sides[name] = asked
    wall: Times = {name: [] for name in sides}
    used: Times = {name: [] for name in sides}
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for work in sides.values():
        work(task.part(0)[:1])
    for one in accuracies.values():
        one.clear()
    order = list(sides)
    for number in console.track(range(rounds), task.kind, unit="rounds"):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            seconds, processor, rows = sides[name](task.part(number))
            wall[name].append(seconds)
            used[name].append(processor)
            found[name] += rows
    return _told(ours, task, found, (wall, used), accuracies)


def _told(
    ours: Ours, task: Task, found: dict[str, list[Found]], times: tuple[Times, Times], told: dict[str, list[float]]
) -> dict[str, Any]:
    others = [name for name in found if name != "ours"]
    entry: dict[str, Any] = {
        "rows": len(found["ours"]),
        "rows_of_a_round": task.count,
        "labels": len(task.labels),
        "examples": task.rows[0]["prompt"].count(ASKED.split("{}")[0]) - 1,
        "prompt_tokens": statistics.mean(len(ours.prompt(row).ids) for row in task.rows),
        "accuracy": {name: statistics.mean(row["right"] for row in rows) for name, rows in found.items()},
        "accuracy_said_by_the_harness": {name: statistics.mean(rounds) for name, rounds in told.items()},
        "differences": {name: differences(task.kind, found["ours"], found[name], ours.margin) for name in others},
    }
    if task.kind == "ranked":
        entry["furthest_apart_nats"] = {
            name: max(
                abs(a - b)
                for one, two in zip(_by_id(found["ours"]), _by_id(found[name]), strict=True)
                for a, b in zip(one["scores"], two["scores"], strict=True)
            )
            for name in others
        }
    for name, one in zip(("seconds", "processor_seconds"), times, strict=True):
        entry[name] = one
        entry[f"rows_per_{name.removesuffix('s')}"] = {
            side: task.count / statistics.median(seconds) for side, seconds in one.items()
        }
        entry[f"ratio_of_{name}"] = {side: ratio(one, side, "ours") for side in others}
    return entry


def _by_id(rows: Sequence[Found]) -> list[Found]:
    return sorted(rows, key=lambda row: int(row["id"]))


NAMES = {
    "ours": "InstructRec",
    "passes": "one pass a label",
    "loop": "loop over `model.generate`",
    "harness_1": "harness, batch 1",
    f"harness_{BATCH}": f"harness, batch {BATCH}",
}
TITLES = {"ranked": "Labels ranked by likelihood", "written": "Answers generated"}


def page(result: dict[str, Any]) -> str:
    """The result file to read."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Beside lm-evaluation-harness",
        "",
        f"Model {result['model']} in fp32, {result['threads']} thread, sides taking turns; {versions}.",
        "Rows per second are medians over rounds; `times` is the median of the rounds' ratios of InstructRec's speed",
        "to the side's, by processor time and by the wall clock. Of the harness only its calls of the model are timed.",
    ]
    for kind, one in result["tasks"].items():
        asked = f"{one['rows']} rows in {len(one['seconds']['ours'])} rounds, {one['labels']} labels, "
        asked += f"{one['examples']} solved examples, prompts of {one['prompt_tokens']:.0f} tokens on average"
        head = "| | accuracy | rows / s of processor | rows / s of wall clock | times, processor | times, wall clock |"
        by = f"`{one['command']}`, commit {one['commit']}{' (changed)' if one['dirty'] else ''}"
        lines += ["", f"## {TITLES[kind]}", "", f"{asked}. {by}.", "", head, "| --- | --- | --- | --- | --- | --- |"]
        for side in one["accuracy"]:
            speeds = [one["rows_per_processor_second"][side], one["rows_per_second"][side]]
            times = [one["ratio_of_processor_seconds"].get(side), one["ratio_of_seconds"].get(side)]
            cells = [f"{speed:.2f}" for speed in speeds] + ["" if x is None else f"{x:.2f}" for x in times]
            lines.append(f"| {NAMES[side]} | {one['accuracy'][side]:.3f} | " + " | ".join(cells) + " |")
        lines.append("")
        for side, rows in one["differences"].items():
            far = one.get("furthest_apart_nats", {}).get(side)
            said = "" if far is None else f" Furthest apart: {far:.1e} nats."
            listed = "; ".join(f"row {row['id']}: {row['cause']}" for row in rows) or "none"
            lines.append(f"- InstructRec and {NAMES[side]}: {len(rows)} rows differ ({listed}).{said}")
    return "\n".join(lines) + "\n"


def _command(arguments: Sequence[str], python: str) -> str:
    """What was called, without the place of the harness."""
    return " ".join(["python bench/harness.py", *("VENV/bin/python" if one == python else one for one in arguments)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then write result file and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--harness-python", default="", help="a Python that has lm-evaluation-harness")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--tasks", default=",".join(TITLES), help="others stay in the result file as they are")
    parser.add_argument("--rounds", type=int, default=0, help="instead of those of the size")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", action="store_true", help="only the page, from the result file")
    given = parser.parse_args(arguments)
    if given.page:
        write_text(given.out / "harness.md", page(read_json(given.out / "harness.json")))
        return 0
    torch.set_num_threads(1)
    size = SIZES[given.size]
    size = Size(size.labels, size.ranked, size.written, size.tokens, given.rounds or size.rounds)
    commit, dirty = commit_of_source()
    with tempfile.TemporaryDirectory() as name:
        template = Path(name, "joined.jinja")
        write_text(template, TEMPLATE)
        model = given.model if given.size == "cpu" else str(tiny_model(Path(name, "tiny"), generated()))
        ours = Ours(open_target(model, precision="fp32", offline=True, template=str(template)))
        tasks = tasks_of(*(banking if given.size == "cpu" else toys)(given.data, size), size)
        tasks = [task for task in tasks if task.kind in given.tasks.split(",")]
        file = given.out / "harness.json"
        before = read_json(file)["tasks"] if file.is_file() and len(tasks) < len(TITLES) else {}
        result: dict[str, Any] = {
            "model": given.model if given.size == "cpu" else "tiny",
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            "tasks": before,
        }
        told = _command(arguments if arguments is not None else sys.argv[1:], given.harness_python)
        eos = ours.loaded.renderer.tokenizer.eos_token
        folder = Path(ours.loaded.backbone.folder)
        beside = harness(given.harness_python, folder, tasks, eos) if given.harness_python else nullcontext()
        with beside as there:
            if there is not None:
                result["versions"] |= {f"harness's {name}": version for name, version in there.versions.items()}
            for task in tasks:
                source = {"command": told, "commit": commit, "dirty": dirty}
                result["tasks"][task.kind] = source | measure(ours, task, size.rounds, there)
                write_json(file, result)
                write_text(given.out / "harness.md", page(result))
    console.say(page(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
