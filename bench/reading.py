"""`make bench-reading`: ways of reading compared, one tuned model an arm, seed and learning rate.

    python bench/reading.py --size cpu                     # section 6, rows (1): 6 arms x 3 seeds
    python bench/reading.py --size gpu --minutes 9         # in pieces; exit code 75 means: call it again
    python bench/reading.py --size gpu --arms sampled,slots8 --data p3 --model gemma-3-270m
    python bench/reading.py --only-page

All arms learn from the same rows in the same order, with as many rows to a step: `batch_tokens` would count an
instruction as often as it is read, so that arms with more readings would make more steps. Each result is a file under
docs/results/reading (scores of rows, not their text), written when it is whole; one that is there is not made again,
and a run that was killed goes on from its last checkpoint in build/reading.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reading_data import Counts, Source, generated, induction, only_to_learn_from, p3, select, tiny_model, write_jsonl
from reading_page import reading_page, watched, write_result

from instructrec import console
from instructrec.config import TuneSettings
from instructrec.environment import commit_of_source
from instructrec.errors import InputError, InstructRecError, did_you_mean
from instructrec.files import read_json, sha256_of
from instructrec.recipes.signals import Interrupted
from instructrec.settings import checked

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
UNFINISHED = 75  # exit code: the time is up, call again
CLEAN = ("seen", "unseen_wordings", "unseen_tasks", "question_first", "question_last")  # answered by generation

ARMS: dict[str, dict[str, Any]] = {
    "single": {},
    "repeat": {"strokes": "2"},
    "deep": {"strokes": "2", "deep": True},
    "frozen": {"strokes": "2", "prior": "frozen"},
    "consistent": {"strokes": "2", "deep": True, "consistency": 1.0},
    # After Bitune (arXiv 2405.14862); docs/rrtransformer.md tells how its own setting differs.
    "gated": {"strokes": "2", "mix": "gated", "direction": "bidirectional", "memory": "sink+last"},
    "single_x2": {"epochs": 2.0},  # a control of equal compute
    "single_slow": {"learning_rate": 5e-4},  # and one of learning less
    "sampled": {"strokes": "1,2,3"},
    "sampled_deep": {"strokes": "1,2,3", "deep": True},
    # half the rank: as many trained weights as the others, and the same scale (alpha / rank)
    "separate": {"strokes": "2", "stroke_adapters": "separate", "lora": {"rank": 8, "alpha": 16.0}},
    "slots8": {"strokes": "2", "slots": 8},
    "slots32": {"strokes": "2", "slots": 32},
    "sink_last": {"strokes": "2", "memory": "sink+last"},
}
FIRST = ("single", "repeat", "deep", "frozen", "gated", "single_x2")
# Readings that are also answered with, besides the arm's own.
DIALS = {
    "repeat": (1, 2, 3),
    "deep": (1, 2, 3),
    "consistent": (1, 2, 3),
    "sampled": (1, 2, 3, 4),
    "sampled_deep": (1, 2, 3, 4),
}
ONCE_TOO = tuple(DIALS)  # whose answers are written after one reading as well


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is compared on how much. rates: learning rates tried on the first seed, all of them by every arm."""

    data: str
    counts: Counts
    arms: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3,)
    model: str = "smollm2-135m"
    batch_rows: int = 16
    save_steps: int = 25
    precision: str = "auto"


SIZES = {
    "tiny": Size(
        data="generated", counts=Counts(train=48, seen=8, wordings=8, unseen=4, wordings_of=3), arms=tuple(ARMS),
        seeds=(0,), model="", batch_rows=8, save_steps=1, precision="fp32",
    ),
    "cpu": Size(data="induction", counts=Counts(train=1800, seen=144, wordings=144, unseen=50), arms=FIRST),
    "gpu": Size(
        data="mixed", counts=Counts(train=20000, seen=288, wordings=288, unseen=50, watch=10, wordings_of=9),
        arms=tuple(ARMS), rates=(5e-4, 1e-3, 2e-3),
    ),
}  # fmt: skip
SOURCES = {
    "generated": lambda data: generated(),
    "induction": induction,
    "p3": p3,
    "mixed": lambda data: induction(data) + p3(data) + only_to_learn_from(data),
}


@dataclass(frozen=True)
class Place:
    """Where things are. name: of the folder of results. results: the folder above it."""

    name: str
    results: Path
    build: Path

    def file(self, job: Job) -> Path:
        """The result of a job."""
        return self.results / self.name / f"{job.name}.json"

    def run(self, job: Job) -> Path:
        """Its run folder."""
        return self.build / "runs" / self.name / job.name


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the table: an arm with a seed and a learning rate."""

    arm: str
    seed: int
    rate: float
    searched: bool
    settings: dict[str, Any]
    data: dict[str, str]  # part -> sha256 of its rows
    command: str

    @property
    def name(self) -> str:
        """Stem of its file."""
        return f"{self.arm}-s{self.seed}" + (f"-lr{self.rate:g}" if self.searched else "")

    @property
    def identity(self) -> str:
        """Hex digest of all that its result depends on."""
        settings = self.settings | {"model": Path(self.settings["model"]).name}
        known = {"arm": self.arm, "settings": settings, "data": self.data, "dials": DIALS.get(self.arm)}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


class Clock:
    """Interrupts this process after so many minutes: `tune` then leaves a checkpoint."""

    def __init__(self, minutes: float | None) -> None:
        self.up = False
        self.timer = threading.Timer(60 * (minutes or 0), self.ring)
        self.timer.daemon = True
        self.before = signal.getsignal(signal.SIGINT)
        if minutes:  # a shell has its background jobs ignore the signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.timer.start()

    def stop(self) -> None:
        """No interrupt any more."""
        self.timer.cancel()
        signal.signal(signal.SIGINT, self.before)

    def ring(self) -> None:
        """The time is up."""
        self.up = True
        os.kill(os.getpid(), signal.SIGINT)


class Bench:
    """All jobs of one call."""

    def __init__(self, size: str, plan: Size, place: Place, data: Path, beside: bool = False) -> None:
        self.size, self.plan, self.place, self.beside = size, plan, place, beside
        self.source: Source = SOURCES[plan.data](data)
        if not plan.model:
            self.plan = replace(plan, model=str(tiny_model(place.build / "tiny-model", self.source)))

    def run(self) -> None:
        """Whatever is not there yet: all arms of a seed before the next seed."""
        first = self.plan.seeds[0]
        for seed in self.plan.seeds:
            files = self.files(seed)
            for arm in self.plan.arms:
                rates = self.plan.rates if seed == first else (self.best(arm, first, files),)
                for rate in rates:
                    self.do(self.job(arm, seed, rate, files), files)

    def best(self, arm: str, first: int, files: dict[str, Path]) -> float:
        """The learning rate that the rows for choosing favour, on the first seed."""
        if len(self.plan.rates) == 1:
            return self.plan.rates[0]
        losses = {rate: watched(read_json(self.place.file(self.job(arm, first, rate, {})))) for rate in self.plan.rates}
        return min(losses, key=losses.__getitem__)

    def files(self, seed: int) -> dict[str, Path]:
        """The rows of a seed, written down: part -> file."""
        folder = self.place.build / "data" / self.place.name / f"s{seed}"
        parts = select(self.source, seed, self.plan.counts)
        for part, rows in parts.items():
            write_jsonl(folder / f"{part}.jsonl", rows)
        return {part: folder / f"{part}.jsonl" for part in parts}

    def job(self, arm: str, seed: int, rate: float, files: dict[str, Path]) -> Job:
        """One row of the table."""
        plan, usual = self.plan, SIZES[self.size]
        settings: dict[str, Any] = {
            "model": plan.model,
            "seed": seed,
            "epochs": 1.0,
            "learning_rate": rate,
            "schedule": "cosine",
            "batch_rows": plan.batch_rows,
            "batch_tokens": 1 << 20,  # rows alone decide what makes a step
            "lora": {"rank": 16},
            "held_out": "none",
            "save_steps": plan.save_steps,
            "precision": plan.precision,
        } | ARMS[arm]
        command = f"python bench/reading.py --size {self.size} --arms {arm} --seeds {seed}"
        command += f" --model {plan.model}" if usual.model and plan.model != usual.model else ""
        command += f" --data {plan.data}" if plan.data != usual.data else ""
        command += f" --rows {plan.counts.train}" if plan.counts.train != usual.counts.train else ""
        command += f" --rates {','.join(f'{one:g}' for one in plan.rates)}" if plan.rates != usual.rates else ""
        digests = {part: sha256_of(file)[:16] for part, file in files.items()}
        searched = len(plan.rates) > 1
        return Job(
            arm=arm, seed=seed, rate=rate, searched=searched, settings=settings, data=digests, command=command
        )  # fmt: skip

    def do(self, job: Job, files: dict[str, Path]) -> None:
        """Tune and measure, unless its result is there."""
        target = self.place.file(job)
        if target.is_file() and read_json(target)["identity"] == job.identity:
            console.say(f"{self.place.name}/{job.name}: there already")
            return
        console.say(f"\n{self.place.name}/{job.name}: {job.command}")
        begun = time.perf_counter()
        folder = self.place.run(job)
        note = tuned(job, files["train"], folder)
        started = time.perf_counter()
        sets, own = measure(job, files, folder)
        run = read_json(folder / "run.json")
        commit, dirty = commit_of_source()
        result = {
            "arm": job.arm,
            "seed": job.seed,
            "rate": job.rate,
            "size": self.size,
            "model": Path(self.plan.model).name,
            "source": self.plan.data,
            "command": job.command,
            "identity": job.identity,
            "commit": commit,
            "dirty": dirty,
            "tuned": {name: note[name] for name in ("commit", "dirty")},
            "settings": job.settings | {"model": Path(self.plan.model).name},
            "data": job.data,
            "rows": run["data"]["parts"]["train"],
            "trained_parameters": run["trained_parameters"],
            "steps": run["training"]["steps"][-1]["step"],
            "training_seconds": run["training"]["steps"][-1]["seconds"],
            "tokens_per_second": run["training"]["tokens_per_second"],
            "peak_memory_mb": note["peak_memory_mb"],
            "evaluation_seconds": round(time.perf_counter() - started, 1),
            "beside": self.beside,
            "surroundings": run["surroundings"],
            "choosing": sorted(set(self.source.choosing) & set(sets["unseen_tasks"]["tasks"])),
            "own": own,
            "sets": sets,
        }
        write_result(target, result)
        if time.perf_counter() - begun > 60:  # the page takes a second; at the end it is made anyway
            reading_page(self.place.results)


def tuned(job: Job, rows: Path, folder: Path) -> dict[str, Any]:
    """Tune, go on where a killed run stopped, or do nothing if it has ended; commit and memory it was tuned with."""
    from instructrec.recipes.trial import tuned as tuned_run

    settings = checked(TuneSettings, job.settings | {"out": str(folder), "trackers": "none"})
    note = tuned_run(str(rows), settings, job.identity)
    return note | {"peak_memory_mb": (note["peak_memory_bytes"] or 0) >> 20}


def measure(job: Job, files: dict[str, Path], folder: Path) -> tuple[dict[str, Any], str]:
    """Scores of each row of each set, and how often the arm itself reads."""
    from instructrec.data.readers import read
    from instructrec.inference.loading import open_target

    loaded = open_target(str(folder), precision=job.settings["precision"])
    own = loaded.strokes
    readings = DIALS.get(job.arm, (own,))
    sets: dict[str, Any] = {}
    for part, file in files.items():
        if part == "train":
            continue
        records = list(read(file))
        rendered = [loaded.renderer.render(record) for record in records]
        found = losses(loaded, rendered, readings)
        sets[part] = {
            "rows": [record.key[:8] for record in records],
            "tasks": [record.task for record in records],
            "tokens": [count for _, count in found[own]],
            "nats": {str(reading): [round(nats, 5) for nats, _ in each] for reading, each in found.items()},
        }
        if part in CLEAN:
            sets[part]["exact"] = exact(loaded, records, rendered)
            if job.arm in ONCE_TOO:
                loaded.model.strokes = 1
                sets[part]["exact_once"] = exact(loaded, records, rendered)
                loaded.model.strokes = own
    return sets, str(own)


def losses(loaded: Any, rendered: Sequence[Any], readings: Sequence[int]) -> dict[int | str, list[tuple[float, int]]]:
    """Number of readings -> (nats, tokens) of each row; several in one pass where the plan allows, and then also of the
    probability of each token averaged over the readings that the arm is tuned for."""
    from rereading import losses_by_reading

    from instructrec.training.loss import row_losses

    options = {"pad_id": loaded.backbone.pad_id, "batch_tokens": 4096}
    if len(readings) > 1 and loaded.model.plan.sequence:
        own = loaded.strokes
        by_reading = losses_by_reading(loaded.model, rendered, max(readings), averaged=own, **options)
        found: dict[int | str, list[tuple[float, int]]] = {reading: by_reading[reading - 1] for reading in readings}
        return found | {f"{' and '.join(map(str, range(1, own + 1)))}, averaged": by_reading[-1]}
    found, own = {}, loaded.strokes
    for reading in readings:
        if reading != loaded.strokes:
            loaded.model.strokes = reading
        found[reading] = row_losses(loaded.model, rendered, **options)
    if own != loaded.strokes:
        loaded.model.strokes = own
    return found


def exact(loaded: Any, records: Sequence[Any], rendered: Sequence[Any]) -> list[int]:
    """1 where the written answer is one of the right ones, else 0."""
    from instructrec.inference.engine import Sampling, generate
    from instructrec.measures.metrics import exact_match

    longest = max(len(row.ids) - row.prompt_end for row in rendered)
    stop_ids = loaded.stop_ids
    sampling = Sampling(max_new_tokens=longest + 8)
    answers = generate(
        loaded.model, rendered, stop_ids=stop_ids, pad_id=loaded.backbone.pad_id, sampling=sampling
    )  # fmt: skip
    texts = [loaded.renderer.decode(answer.ids) for answer in answers]
    return [int(exact_match(text, record.answers) > 0) for text, record in zip(texts, records, strict=True)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--model", help="built-in name or folder; default: by size")
    parser.add_argument("--data", choices=list(SOURCES), help="default: by size")
    parser.add_argument("--arms", help=f"of {', '.join(ARMS)}; default: by size")
    parser.add_argument("--seeds", help="separated by commas; default: by size")
    parser.add_argument("--rows", type=int, help="rows to learn from; default: by size")
    parser.add_argument("--rates", help="learning rates that every arm tries on the first seed; default: by size")
    parser.add_argument("--minutes", type=float, help="stop after so long, to go on at the next call (exit code 75)")
    parser.add_argument("--shared", type=Path, default=DATA, help="folder of the shared data")
    parser.add_argument("--results", type=Path, help="folder of the result files; default: docs/results/reading")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "reading", help="folder of runs and rows")
    parser.add_argument("--beside", action="store_true", help="other work runs on this machine: show no times")
    parser.add_argument("--only-page", action="store_true", help="make page and picture from the files that are there")
    return parser


def planned(given: argparse.Namespace) -> tuple[Size, str]:
    """The size with what was given in its place, and the name of its folder of results. Raises InputError."""
    usual = SIZES[given.size]
    arms = tuple(given.arms.split(",")) if given.arms else usual.arms
    for arm in arms:
        if arm not in ARMS:
            raise InputError(f"arms: unknown '{arm}', {did_you_mean(arm, ARMS)}")
    try:
        seeds = tuple(int(seed) for seed in given.seeds.split(",")) if given.seeds else usual.seeds
        rates = tuple(float(rate) for rate in given.rates.split(",")) if given.rates else usual.rates
    except ValueError as error:
        raise InputError(f"seeds, rates: want numbers separated by commas ({error})") from None
    counts = replace(usual.counts, train=given.rows) if given.rows else usual.counts
    counts = replace(counts, watch=max(counts.watch, 2)) if len(rates) > 1 else counts
    plan = replace(
        usual, arms=arms, seeds=seeds, rates=rates, counts=counts,
        model=given.model or usual.model, data=given.data or usual.data,
    )  # fmt: skip
    parts = [given.size, *([plan.data] if plan.data != usual.data else [])]
    parts += [Path(plan.model).name] if plan.model != usual.model else []
    parts += [f"{given.rows}rows"] if given.rows and given.rows != usual.counts.train else []
    return plan, "-".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the page; the exit code."""
    given = _parser().parse_args(arguments)
    # Scores of a random toy model are no results: they stay in build.
    results = given.results or (given.build / "results" if given.size == "tiny" else ROOT / "docs/results/reading")
    clock = Clock(given.minutes)
    try:
        plan, name = planned(given)
        if not given.only_page:
            if plan.data != "generated" and not given.shared.is_dir():
                raise InputError(f"shared: {given.shared} is not there: these rows need the shared data")
            Bench(given.size, plan, Place(name, results, given.build), given.shared, given.beside).run()
        page = reading_page(results)
    except (Interrupted, KeyboardInterrupt) as error:
        if clock.up:
            console.say("The time is up: the same command goes on from here")
            return UNFINISHED
        if isinstance(error, KeyboardInterrupt):
            raise
        console.fail(str(error))
        return error.exit_code
    except InstructRecError as error:
        console.fail(str(error))
        return error.exit_code
    finally:
        clock.stop()
    console.say(f"Written: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
