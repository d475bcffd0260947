"""Pages and pictures of the two comparisons, made from their result files alone.

A result file holds scores of rows (nats, tokens, right or not, task, a short hash), never their text. Differences are
paired: the same rows of the same seeds on both sides, with 95% bootstrap intervals over clusters (a task of a seed).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.errors import InputError
from instructrec.files import read_json, write_text
from instructrec.measures.statistics import Estimate, Statistic, mean_of, paired_difference

Result = dict[str, Any]
RESAMPLES = 2000
SEEN = "seen+unseen_wordings"  # rows of tasks that were learned from
WORSE = -0.5  # points of exact match on seen tasks that may be lost at most
VIEWS = {
    "seen": "seen tasks",
    "unseen_wordings": "unseen wordings",
    "unseen_tasks/report": "unseen tasks",
    "unseen_tasks/choose": "unseen tasks, for choosing",
    "unseen_tasks": "unseen tasks, both halves",
    "unseen_wordings_typos": "unseen wordings, typos",
    "unseen_tasks_typos/report": "unseen tasks, typos",
    "unseen_tasks_typos/choose": "unseen tasks, typos, for choosing",
    "question_first": "question before the text",
    "question_last": "question after the text",
}
WRITTEN = ("seen", "unseen_wordings", "unseen_tasks")
SHOWN = ("seen", "unseen_wordings", "unseen_tasks/report", "unseen_wordings_typos", "unseen_tasks_typos/report")
ARMS = (
    "single", "repeat", "deep", "consistent", "frozen", "gated", "single_x2", "single_slow",
    "sampled", "sampled_deep", "separate", "slots8", "slots32", "sink_last",
    "detached", "ahead",  # no settings any more (docs/decisions.md)
)  # fmt: skip


def write_result(file: Path, value: Mapping[str, Any]) -> None:
    """A result as JSON with a line for each key (and each set), whole or not at all."""
    lines = []
    for name, entry in value.items():
        if name == "sets":
            sets = [f"  {json.dumps(key)}: {_json(part)}" for key, part in entry.items()]
            lines.append('"sets": {\n' + ",\n".join(sets) + "\n }")
        else:
            lines.append(f"{json.dumps(name)}: {_json(entry)}")
    write_text(file, "{\n " + ",\n ".join(lines) + "\n}\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Group:
    """Results of one size, data and model: arm -> seed -> result, at the learning rate chosen for the arm."""

    name: str
    arms: dict[str, dict[int, Result]]
    searched: dict[str, dict[float, float]]  # arm -> rate -> loss on the rows for choosing

    @classmethod
    def read(cls, folder: Path) -> Group:
        """All result files of a folder."""
        found: dict[str, dict[float, dict[int, Result]]] = {}
        for file in sorted(folder.glob("*.json")):
            result = read_json(file)
            found.setdefault(result["arm"], {}).setdefault(result["rate"], {})[result["seed"]] = result
        arms, searched = {}, {}
        for arm in sorted(found, key=_place):
            rates = found[arm]
            if len(rates) > 1:
                first = min(seed for seeds in rates.values() for seed in seeds)
                searched[arm] = {rate: watched(seeds[first]) for rate, seeds in rates.items() if first in seeds}
                arms[arm] = rates[min(searched[arm], key=searched[arm].__getitem__)]
            else:
                arms[arm] = next(iter(rates.values()))
        return cls(folder.name, arms, searched)


def _place(arm: str) -> tuple[int, str]:
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def watched(result: Result) -> float:
    """Loss on the rows for choosing: seen and unseen tasks weigh the same."""
    part = result["sets"]["watch"]
    sums = np.zeros((2, 2))
    for task, nats, tokens in zip(part["tasks"], part["nats"][result["own"]], part["tokens"], strict=True):
        sums[int(task in result["choosing"])] += (nats, tokens)
    shares = [nats / tokens for nats, tokens in sums if tokens]
    return float(np.mean(shares))


@dataclass(frozen=True)
class Cell:
    """Rows of one view of one arm. clusters: (task, seed) of each row."""

    loss: Statistic
    exact: Statistic | None
    rows: list[str]
    clusters: list[tuple[str, int]]


def _ratio(sums: Any) -> Any:
    return sums[:, 0] / sums[:, 1]


def cell(results: Mapping[int, Result], view: str, seeds: Sequence[int], reading: str | None = None) -> Cell | None:
    """The rows of a view over `seeds`, answered after `reading` (default: as tuned); None where there are none.

    view: sets joined by `+`, and after a stroke `choose` or `report` for one half of their tasks.
    """
    names, _, half = view.partition("/")
    pairs, right, rows, clusters = [], [], [], []
    for seed, name in ((seed, name) for seed in seeds for name in names.split("+")):
        result = results[seed]
        part = result["sets"].get(name)
        nats = part and part["nats"].get(reading or result["own"])
        if not nats:
            return None
        choosing = set(result["choosing"])
        for place, task in enumerate(part["tasks"]):
            if half and (task in choosing) != (half == "choose"):
                continue
            pairs.append((nats[place], part["tokens"][place]))
            written = part.get(_written(result, reading))
            right += [100.0 * written[place]] if written else []
            rows.append(part["rows"][place])
            clusters.append((task, seed))
    if not rows:
        return None
    exact = mean_of(right, (0.0, 100.0)) if len(right) == len(rows) else None
    return Cell(Statistic(np.array(pairs, dtype=np.float64), _ratio), exact, rows, clusters)


def _written(result: Result, reading: str | None) -> str:
    """Where a result has what was written after so many readings."""
    return "exact" if reading in (None, result["own"]) else "exact_once" if reading == "1" else ""


def _has(result: Result, view: str, reading: str | None) -> bool:
    """Whether answers were written for all rows of a view."""
    parts = [result["sets"].get(name) for name in view.partition("/")[0].split("+")]
    return all(part and _written(result, reading) in part for part in parts)


def difference(
    group: Group, arm: str, other: str, view: str, what: str = "loss",
    reading: str | None = None, other_reading: str | None = None,
) -> Any:  # fmt: skip
    """arm - other over the seeds that both have, answered after so many readings (default: as tuned), an Estimate, or
    None. Raises InputError when their rows differ."""
    if other not in group.arms:
        return None
    seeds = sorted(group.arms[arm].keys() & group.arms[other].keys())
    if what == "exact":  # later results have more of it
        asked = ((group.arms[arm], reading), (group.arms[other], other_reading))
        seeds = [seed for seed in seeds if all(_has(results[seed], view, number) for results, number in asked)]
    one, two = cell(group.arms[arm], view, seeds, reading), cell(group.arms[other], view, seeds, other_reading)
    if not seeds or one is None or two is None or getattr(one, what) is None or getattr(two, what) is None:
        return None
    if one.rows != two.rows:
        raise InputError(f"{group.name}: {arm} and {other} were measured on other rows of '{view}' (run both again)")
    return paired_difference(getattr(one, what), getattr(two, what), resamples=RESAMPLES, clusters=one.clusters)


def _signed(found: Estimate | None, digits: int) -> str:
    if found is None:
        return ""
    if found.low == found.high:  # one cluster: no interval is known
        return f"{found.value:+.{digits}f}"
    text = f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"**{text}**" if _clear(found) else text


def _clear(found: Estimate) -> bool:
    """True where zero is outside the interval."""
    return found.low < found.high and (found.low > 0 or found.high < 0)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _values(group: Group, what: str, digits: int) -> list[str]:
    """Means over all seeds of an arm."""
    rows = []
    views = [view for view in VIEWS if any(_mean(group, arm, view, what) is not None for arm in group.arms)]
    for arm in group.arms:
        means = [_mean(group, arm, view, what) for view in views]
        seeds = len(group.arms[arm])
        rows.append([f"{arm} ({seeds})", *("" if mean is None else f"{mean:.{digits}f}" for mean in means)])
    return _table(["arm (seeds)", *(VIEWS[view] for view in views)], rows) if views else []


def _mean(group: Group, arm: str, view: str, what: str) -> float | None:
    found = cell(group.arms[arm], view, sorted(group.arms[arm]))
    statistic = found and getattr(found, what)
    return statistic.value if statistic else None


def _differences(group: Group, other: str, what: str, digits: int) -> list[str]:
    rows = []
    for arm in group.arms:
        cells = [difference(group, arm, other, view, what) for view in VIEWS]
        if arm != other and any(cells):
            rows.append([arm, cells])
    views = [place for place in range(len(VIEWS)) if any(cells[place] for _, cells in rows)]
    names = list(VIEWS.values())
    body = [[arm, *(_signed(cells[place], digits) for place in views)] for arm, cells in rows]
    return _table([f"arm − {other}", *(names[place] for place in views)], body) if body else []


def never_worse(group: Group) -> list[str]:
    """One line an arm: does it lose more than half a point of exact match on seen tasks?"""
    lines = []
    for arm, reading in ((arm, reading) for arm in group.arms if arm != "single" for reading in (None, "1")):
        own = next(iter(group.arms[arm].values()))["own"]
        found = difference(group, arm, "single", SEEN, "exact", reading) if reading != own else None
        if found is not None:
            verdict = "held" if found.low >= WORSE else "broken" if found.value < WORSE else "not shown"
            after = f", answered after {reading}" if reading else ""
            lines.append(f"- {arm}{after}: {verdict} ({_signed(found, 1)} points)")
    head = (
        f"Never worse than {-WORSE} points of exact match on seen tasks, trained and unseen wordings together (held: "
        "the whole interval is above it; broken: the difference is below it):"
    )
    return [head, "", *lines, ""] if lines else []


def _dial(group: Group) -> list[str]:
    """Arms that were also answered with other numbers of readings than tuned with."""
    rows = []
    for arm, results in group.arms.items():
        first = next(iter(results.values()))
        readings = list(first["sets"]["seen"]["nats"]) if "seen" in first["sets"] else []
        for reading in readings if len(readings) > 1 else []:
            found = [difference(group, arm, "single", view, "loss", reading) for view in (*SHOWN, "unseen_tasks")]
            own = ", as tuned" if reading == first["own"] else ""
            right = [difference(group, arm, "single", view, "exact", reading) for view in WRITTEN]
            told = [*(_signed(one, 3) for one in found), *(_signed(one, 1) for one in right)]
            rows.append([f"{arm}, answered after {reading}{own}", *told])
    head = [
        "arm − single",
        *(VIEWS[view] for view in (*SHOWN, "unseen_tasks")),
        *(f"{VIEWS[view]}, exact" for view in WRITTEN),
    ]
    return _table(head, rows) if rows else []


def _equal_dial(group: Group, other: str) -> list[str]:
    """Arms beside another, both answered after the same number of readings: at the same cost of an answer."""
    rows = []
    for reading in ("1", "2", "3"):
        for arm in group.arms:
            found = [difference(group, arm, other, view, "loss", reading, reading) for view in SHOWN]
            if arm != other and any(found):
                rows.append([f"{arm}, both after {reading}", *(_signed(one, 3) for one in found)])
    return _table([f"arm − {other}", *(VIEWS[view] for view in SHOWN)], rows) if rows else []


def _costs(group: Group) -> list[str]:
    rows = []
    for arm, results in group.arms.items():
        both = sorted(results.keys() & group.arms.get("single", {}).keys())
        ratio = [results[seed]["training_seconds"] / group.arms["single"][seed]["training_seconds"] for seed in both]
        mean = {
            name: float(np.mean([result[name] for result in results.values()]))
            for name in ("training_seconds", "tokens_per_second", "peak_memory_mb", "evaluation_seconds", "steps")
        }
        timed = not any(result.get("beside") for result in [*results.values(), *group.arms.get("single", {}).values()])
        times = [f"{mean['training_seconds']:.0f}", f"{np.mean(ratio):.2f}" if ratio else ""]
        times += [f"{mean['tokens_per_second']:.0f}"]
        rows.append(
            [
                arm,
                f"{next(iter(results.values()))['trained_parameters']:,}",
                f"{mean['steps']:.0f}",
                *(times if timed else [""] * 3),
                f"{mean['peak_memory_mb']:.0f}",
                f"{mean['evaluation_seconds']:.0f}" if timed else "",
            ]
        )
    head = ["arm", "trained parameters", "steps", "training, s", "to single", "tokens/s", "memory, MB", "evaluation, s"]
    return _table(head, rows)


def _by_task(group: Group) -> list[str]:
    arms = [arm for arm in group.arms if difference(group, arm, "single", "unseen_tasks") and arm != "single"]
    means: dict[str, dict[str, float]] = {}
    for arm in ["single", *arms]:
        found = cell(group.arms[arm], "unseen_tasks", sorted(group.arms[arm])) if arm in group.arms else None
        for task in sorted({task for task, _ in found.clusters}) if found else []:
            rows = [place for place, (name, _) in enumerate(found.clusters) if name == task] if found else []
            means.setdefault(task, {})[arm] = found.loss.take(rows).value if found else 0.0
    if not arms:
        return []
    head = ["unseen task", "single", *(f"{arm} − single" for arm in arms)]
    body = [
        [task, f"{row['single']:.3f}", *(f"{row[arm] - row['single']:+.3f}" if arm in row else "" for arm in arms)]
        for task, row in sorted(means.items())
        if "single" in row
    ]
    return ["<details><summary>Loss by unseen task</summary>", "", *_table(head, body), "</details>", ""]


def section(group: Group) -> list[str]:
    """One size, data and model as Markdown."""
    every = [result for results in group.arms.values() for result in results.values()]
    first = every[0]
    commits = sorted({_commit(part) for result in every for part in (result["tuned"], result)})
    choosing = sorted({task for result in every for task in result["choosing"]})
    lines = [f"## {group.name}", "", "```sh", *dict.fromkeys(result["command"] for result in every), "```", ""]
    lines += [
        f"{first['model']}, {first['source']}, {first['rows']:,} rows to learn from; commits {', '.join(commits)}.",
        f"Loss in nats a token of the right answer: lower is better. Unseen tasks for choosing: {', '.join(choosing)}.",
        "",
    ]
    if group.searched:
        rates = sorted({rate for found in group.searched.values() for rate in found})
        body = [
            [arm, *(f"{found[r]:.3f}" if r in found else "" for r in rates)] for arm, found in group.searched.items()
        ]
        lines += ["Learning rate, by loss on rows for choosing (first seed):", ""]
        lines += _table(["arm", *(f"{rate:g}" for rate in rates)], body)
    lines += ["### Loss", "", *_values(group, "loss", 3), *_differences(group, "single", "loss", 3)]
    lines += [*_differences(group, "repeat", "loss", 3)]
    lines += ["### Exact match, percent", "", *_values(group, "exact", 1), *_differences(group, "single", "exact", 1)]
    lines += [*never_worse(group)]
    if dial := _dial(group):
        lines += ["### Other numbers of readings than tuned with", "", *dial]
        for other in ("repeat", "deep", "single_slow"):
            lines += _equal_dial(group, other)
    return [*lines, "### Cost", "", *_costs(group), *_by_task(group)]


def _commit(part: Mapping[str, Any]) -> str:
    return f"{part['commit']}{' with uncommitted changes' if part['dirty'] else ''}"


def reading_page(folder: Path) -> Path:
    """Page and picture of `bench/reading.py` beside the folder of its results."""
    places = sorted({file.parent for file in folder.glob("*/*.json")})
    if not places:
        raise InputError(f"results: nothing in {folder} yet")
    groups = [Group.read(place) for place in places]
    page = folder.with_name(f"{folder.name}.md")
    lines = [
        "# Readings compared",
        "",
        f"Made by `bench/reading.py` from the files in `{folder.name}/`: the same rows and seeds in the same order and",
        "steps, as many trained weights; arms differ in how an instruction is read (docs/rrtransformer.md).",
        f"Differences are paired; in brackets: 95% bootstrap intervals ({RESAMPLES:,} resamples) over clusters, a task",
        "of a seed being one; bold: zero is outside. With few clusters such intervals are somewhat too narrow. Nothing",
        "was stopped early: the last step is kept. Unseen tasks come in two halves, one to choose designs on, one to",
        "report. Typos: in a tenth of the words, one at least.",
        "",
        f"![Differences to a single reading]({folder.name}.png)",
        "",
    ]
    for group in groups:
        lines += section(group)
    write_text(page, "\n".join(lines))
    panels = [
        (
            f"{model}\n{VIEWS[view]}",
            [(name, difference(group, arm, "single", view, "loss", reading)) for name, (arm, reading) in drawn],
        )
        for group in groups
        if (drawn := _drawn(group))
        for model in [next(iter(next(iter(group.arms.values())).values()))["model"]]
        for view in SHOWN
    ]
    forest(panels, len(SHOWN), "difference in loss to a single reading, nats a token", page.with_suffix(".png"))
    return page


def _drawn(group: Group) -> list[tuple[str, tuple[str, str | None]]]:
    """Rows of the picture: name, and the arm with its number of readings. Arms of as many seeds as there are, as they
    were tuned and after one reading."""
    most = max(map(len, group.arms.values()))
    rows: list[tuple[str, tuple[str, str | None]]] = []
    for arm, results in group.arms.items():
        first = next(iter(results.values()))
        if arm != "single" and len(results) == most:
            rows.append((arm, (arm, None)))
            if first["own"] != "1" and "1" in first["sets"].get("seen", {"nats": ()})["nats"]:
                rows.append((f"{arm}, after 1", (arm, "1")))
    return rows


def forest(panels: Sequence[tuple[str, list[tuple[str, Any]]]], columns: int, label: str, file: Path) -> None:
    """Panels of named differences with their intervals, left of the line is better."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [(title, [entry for entry in entries if entry[1] is not None]) for title, entries in panels]
    if not any(entries for _, entries in panels):
        return
    rows = -(-len(panels) // columns)
    heights = [
        1.0 + 0.28 * max(len(entries) for _, entries in panels[row * columns :][:columns]) for row in range(rows)
    ]
    figure = Figure(figsize=(3.0 * columns, sum(heights)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for place, axis in enumerate(axes.flat):
        title, entries = panels[place] if place < len(panels) else ("", [])
        axis.set_visible(bool(entries))
        axis.set_title(title, fontsize=9)
        axis.axvline(0, color="#1d2530", linewidth=1)
        for height, (_, found) in enumerate(entries):
            colour = "#6b7686" if not _clear(found) else "#00806a" if found.value < 0 else "#c25e00"
            axis.plot([found.low, found.high], [height, height], color=colour, linewidth=2)
            axis.plot([found.value], [height], "o", color=colour, markersize=5)
        axis.set_yticks(range(len(entries)), [name for name, _ in entries], fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.invert_yaxis()
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.supxlabel(label, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def rereading_page(folder: Path) -> Path:
    """Page and picture of `bench/rereading.py`: the untuned effect, beside the folder of its results."""
    found = [read_json(file) for file in sorted(folder.glob("*.json"))]
    page = folder.with_name(f"{folder.name}.md")
    lines = [
        "# Reading again without tuning",
        "",
        "Made by `bench/rereading.py` from the files in `"
        + folder.name
        + "/`: loss in nats a token of the right answer",
        "after one to four readings of the instruction, nothing tuned. Below each loss: the paired difference to one",
        f"reading with its 95% bootstrap interval ({RESAMPLES:,} resamples), over rows, and over tasks where the set",
        "has five or more; bold: zero is outside.",
        "",
        f"![Differences to one reading]({folder.name}.png)",
        "",
    ]
    panels = []
    for model in dict.fromkeys(result["model"] for result in found):
        body, results = [], [result for result in found if result["model"] == model]
        readings = list(dict.fromkeys(reading for result in results for reading in result["nats"]))
        for result in results:
            body += _rereading_rows(result, readings)
            others = [reading for reading in result["nats"] if reading != "1"]
            entries = [(f"{reading} readings", _rereading(result, reading, False)) for reading in others]
            panels.append((f"{model}: {result['set']}", entries))
        commands = dict.fromkeys(result["command"] for result in results)
        commits = sorted({_commit(result) for result in results})
        lines += [f"## {model}", "", "```sh", *commands, "```", "", f"Commits {', '.join(commits)}.", ""]
        lines += _table(["set", *(f"read {reading}" for reading in readings)], body)
    write_text(page, "\n".join(lines))
    columns = max((sum(title.startswith(panels[0][0].split(":")[0]) for title, _ in panels)), 1) if panels else 1
    forest(panels, columns, "difference in loss to one reading, nats a token", page.with_suffix(".png"))
    return page


def _rereading(result: Result, reading: str, by_task: bool) -> Estimate:
    sides = [Statistic(np.array(list(zip(result["nats"][one], result["tokens"], strict=True))), _ratio)
             for one in (reading, "1")]  # fmt: skip
    return paired_difference(*sides, resamples=RESAMPLES, clusters=result["tasks"] if by_task else None)


def _rereading_rows(result: Result, readings: Sequence[str]) -> list[list[str]]:
    known = [reading for reading in readings if reading in result["nats"]]
    loss = {reading: f"{sum(result['nats'][reading]) / sum(result['tokens']):.3f}" for reading in known}
    rows = [[f"{result['set']} ({len(result['rows'])} rows)", *(loss.get(reading, "") for reading in readings)]]
    for by_task in (False, True):
        if by_task and len(set(result["tasks"])) < 5:
            continue
        cells = [
            _signed(_rereading(result, reading, by_task), 3) if reading in known[1:] else "" for reading in readings
        ]
        rows.append([f"− read once, over {'tasks' if by_task else 'rows'}", *cells])
    return rows
