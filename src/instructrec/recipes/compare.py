"""`instructrec compare`: several settings, tuned and tested on the same rows and seeds, and what their differences are.

Everything lies below one folder: `results/NAME-sSEED.json` (one a run), `runs/NAME-sSEED` (the run folders),
`comparison.json`, `comparison.md`, `comparison.html`. The same command goes on after a stop or a kill.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import console
from ..config import ComparisonSettings
from ..data.facts import different_answers
from ..data.records import Record
from ..environment import commit_of_source
from ..errors import InputError
from ..measures.extraction import extracted
from ..measures.metrics import label_set, score
from ..settings import checked, resolve
from . import testrows
from .contestants import Contestant, against, axes_of, differing, from_files, from_python, rows_of
from .measure import report_folder
from .rows import Data, name_of, read_rows
from .signals import Interrupted
from .trial import Trial

SHORT = 24  # characters of the middle answer: up to here it is right or it is not
MOST_SEEDS = 100


@dataclass(frozen=True)
class Comparison:
    """report: everything that was found, as in comparison.json.  page: the page to look at."""

    report: dict[str, Any]
    page: Path

    def verdict(self, a: str, b: str, suite: str | None = None, metric: str | None = None) -> dict[str, Any]:
        """What was found of a pair: value, low, high, p_adjusted, verdict, winner, sentence, advice …

        suite: default the first; metric: default the main one.  Raises KeyError where there is no such pair.
        """
        suites = {entry["name"]: entry for entry in self.report["suites"]}
        entry = suites[suite] if suite else next(iter(suites.values()))
        for pair in entry["pairs"]:
            if (pair["a"], pair["b"]) == (a, b):
                found: dict[str, Any] = pair["metrics"][metric or self.report["primary"]]
                return found
        raise KeyError(f"no pair {a}, {b}: " + ", ".join(f"({one['a']}, {one['b']})" for one in entry["pairs"]))


def compare(
    data: Data,
    settings: Mapping[str, Mapping[str, Any]] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    test: Any = None,
    seeds: int | Sequence[int] = 3,
    vary: Mapping[str, Sequence[Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
    **common: Any,
) -> Comparison:
    """Tune and test several settings on the same rows and seeds, and write what their differences are.

    data: the rows, as `tune` takes them.  settings: name -> settings of that one, or settings files.  test: rows to
    test on (several files: several suites), else some are set aside by seed.  vary: a grid: `{"lora.rank": [4, 16]}`.
    common: settings that hold for all of them, and those of the comparison (`against`, `smallest`, `test_share`).
    Raises what `tune` raises, and InputError for settings that can't be compared.
    """
    texts = str(seeds) if isinstance(seeds, int) else ",".join(map(str, seeds)) + "," * (len(seeds) == 1)
    own = {key: common.pop(key) for key in list(common) if key in ComparisonSettings.model_fields}
    own |= {"seeds": texts} | ({"out": os.fspath(out)} if out is not None else {})
    _no_seed(common)
    found = from_python(settings, vary or {}, common)
    one_file = isinstance(test, (str, os.PathLike)) or (test and not isinstance(test[0], (str, os.PathLike)))
    suites = [] if test is None else [test] if one_file else list(test)
    return _compare(data, found, suites, checked(ComparisonSettings, own), "instructrec.compare(…)")


def compare_items(
    items: Sequence[str], test: Sequence[str], vary: Sequence[str], flags: Sequence[tuple[str, str]], command: str
) -> Comparison:
    """The same from the command line: settings files, rows files and `key=value` that hold for all settings."""
    files = [item for item in items if item.lower().endswith((".yaml", ".yml")) and "=" not in item]
    pairs = [(key, value) for key, equals, value in (item.partition("=") for item in items) if equals and _name(key)]
    rows = [item for item in items if item not in files and not _name(item.partition("=")[0] if "=" in item else "")]
    own = [(key, value) for key, value in (*pairs, *flags) if key in ComparisonSettings.model_fields]
    common = [(key, value) for key, value in (*pairs, *flags) if key not in ComparisonSettings.model_fields]
    _no_seed(dict(common))
    settings = resolve(ComparisonSettings, None, own).settings
    found = from_files(files, common, axes_of(vary))
    result = _compare(rows_of(found, rows), found, list(test), settings, command)
    from ..evaluation.comparison import tables

    for title, headers, lines in tables(result.report):
        console.table(headers, lines, title=f"\n{title}")
    console.say("")
    for sentence in result.report["overview"]:
        console.say(sentence)
    console.say(f"Comparison: {result.page}")
    return result


def _name(text: str) -> bool:
    return text.replace(".", "").replace("-", "").replace("_", "").isalnum() and not text[:1].isdigit()


def _no_seed(common: Mapping[str, Any]) -> None:
    if "seed" in common:
        got = common["seed"]
        raise InputError(f"seed: a comparison has several (got {got}, want --seeds 3 for 0, 1, 2 or --seeds {got},)")


def seeds_of(text: str) -> list[int]:
    """`3` as 0, 1, 2; `5,7` as 5, 7; `5,` as 5. Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 10]
    if len(numbers) < len([part for part in parts if part]) or not numbers:
        raise InputError(f"seeds: want how many, or which (got '{text}', want 3, or 0,5,7)")
    if len(parts) == 1:
        numbers = list(range(numbers[0]))
    if not 1 <= len(numbers) <= MOST_SEEDS or len(set(numbers)) < len(numbers):
        raise InputError(f"seeds: want 1 to {MOST_SEEDS}, none twice (got '{text}')")
    return numbers


def _compare(
    data: Data, found: list[Contestant], test: Sequence[Any], settings: ComparisonSettings, command: str
) -> Comparison:
    pairs = against(found, settings.against)
    seeds = seeds_of(settings.seeds)
    folder = Path(settings.out) if settings.out else Path("comparisons") / name_of(data)
    first = found[0].settings
    with report_folder(folder):
        rows = read_rows(data, first, folder / "rejected.jsonl")
        maker = testrows.given(rows, test, first, folder) if test else testrows.set_aside(rows, settings.test_share)
        of_seed = {seed: maker(seed) for seed in seeds}
        told = list(dict.fromkeys(one.told for one in of_seed.values()))
        for line in told:
            console.say(line)
        trials = [Trial(one, seed, of_seed[seed], folder, settings.max_new_tokens) for seed in seeds for one in found]
        labels = label_set(different_answers(rows.records), of=len(rows))
        results = _run(trials, labels, command)
        report = _judged(found, pairs, trials, results, labels, settings)
        report |= {"rows": {"told": told, "files": dict(rows.files), "train": len(of_seed[seeds[0]].train)}}
        return _written(report, found, results, folder, command)


def _run(trials: Sequence[Trial], labels: Sequence[str] | None, command: str) -> dict[tuple[str, int], dict[str, Any]]:
    """(name, seed) -> result, made where it isn't there; settings of one seed come before the next seed."""
    results, missing = {}, []
    for trial in trials:
        known = trial.known()
        if known is None:
            missing.append(trial)
        else:
            results[trial.contestant.name, trial.seed] = known
    if results:
        console.say(f"{len(results)} of {len(trials)} runs are there already")
    began = time.monotonic()
    with _told_to_go_on():
        for place, trial in enumerate(missing):
            left = (time.monotonic() - began) / place * (len(missing) - place) if place else 0
            more = f", about {console.clock(left)} left" if left else ""
            console.say(f"\n[{len(trials) - len(missing) + place + 1}/{len(trials)}] {trial.title}{more}")
            results[trial.contestant.name, trial.seed] = trial.make(command, labels)
    return results


@contextmanager
def _told_to_go_on() -> Iterator[None]:
    try:
        yield
    except Interrupted as error:  # what it says of --resume is for tune
        raise Interrupted(
            f"{str(error).partition(';')[0]}; the same command goes on from here", error.exit_code
        ) from None
    except KeyboardInterrupt:
        console.note("The same command goes on from here")
        raise


def _judged(
    found: Sequence[Contestant],
    pairs: Sequence[tuple[str, str]],
    trials: Sequence[Trial],
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    labels: Sequence[str] | None,
    settings: ComparisonSettings,
) -> dict[str, Any]:
    from ..evaluation.verdicts import FEW_TASKS, Suite, judge

    of_seed = {trial.seed: trial.rows.suites for trial in trials}
    names = [one.name for one in found]
    suites: list[Suite] = []
    for suite in dict.fromkeys(name for parts in of_seed.values() for name in parts):
        records: list[Record] = []
        seeds: list[int] = []
        for seed, parts in of_seed.items():
            records += parts.get(suite, [])
            seeds += [seed] * len(parts.get(suite, []))
        scores, tokens = {}, {}
        for name in names:
            given = [results[name, seed]["suites"][suite] for seed, parts in of_seed.items() if suite in parts]
            texts = [text for one in given for text in one["answers"]]
            losses = [pair for one in given for pair in zip(one["nats"], one["tokens"], strict=True)]
            right = [record.answers for record in records]
            scores[name] = score(extracted(texts, right, labels), right, labels=labels, losses=losses)
            tokens[name] = [count for _, count in losses]
        skipped = {}
        if len(set(map(tuple, tokens.values()))) > 1:  # nats a token of two tokenizers can't be compared
            skipped = dict.fromkeys(("loss", "perplexity"), "the settings cut answers into other tokens")
        unit, units = testrows.units(records, FEW_TASKS)
        suites.append(Suite(suite, scores, unit, units, seeds, [record.task for record in records], skipped))
    answers = [record for parts in of_seed.values() for rows in parts.values() for record in rows]
    return judge(suites, pairs, _primary(labels, answers), settings.smallest)


def _primary(labels: Sequence[str] | None, records: Sequence[Record]) -> str:
    """The metric that decides: accuracy for labels, exact match for short or fixed answers, chrF for texts."""
    if labels:
        return "accuracy"
    lengths = sorted(len(record.answer) for record in records)
    fixed = len(records) >= 2 * len({record.answer for record in records})
    return "exact_match" if fixed or lengths[len(lengths) // 2] <= SHORT else "chrf"


def _written(
    report: dict[str, Any],
    found: Sequence[Contestant],
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    folder: Path,
    command: str,
) -> Comparison:
    from .. import __version__
    from ..evaluation.comparison import write_comparison
    from ..evaluation.verdicts import overview

    commit, dirty = commit_of_source()
    every = list(results.values())
    report |= {
        "format": 1,
        "command": command,
        "version": __version__,
        "commit": commit,
        "dirty": dirty,
        "commits": sorted({str(part["commit"]) for one in every for part in (one, one["tuned_by"])}),
        "folder": str(folder),
        "settings": {
            one.name: {
                "file": one.slug,
                "method": one.settings.method,
                "model": one.settings.model,
                "cost": _cost([result for (name, _), result in results.items() if name == one.name]),
            }
            for one in found
        },
        "differs": differing(found),
        "seeds": sorted({seed for _, seed in results}),
        "surroundings": every[0]["surroundings"],
    }
    report["overview"] = overview(report)
    return Comparison(report, write_comparison(report, folder))


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; parameters and rows of the first."""

    def mean(key: str) -> float | None:
        known = [result[key] for result in results if result[key] is not None]
        return sum(known) / len(known) if known else None

    kept = {key: results[0][key] for key in ("trained_parameters", "parameters", "rows")}
    means = {key: mean(key) for key in ("training_seconds", "test_seconds", "peak_memory_bytes", "steps", "best_step")}
    return kept | means


__all__ = ["Comparison", "compare", "compare_items", "seeds_of"]
