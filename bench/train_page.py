"""Page and picture of bench/train.py, made from its result files alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
NAMES = {
    "ours": "InstructRec",
    "ours_alone": "InstructRec, each row by itself",
    "ours_checkpointing": "InstructRec, checkpointing",
    "ours_split": "InstructRec, micro-batches of a quarter",
    "ours_two_processes": "InstructRec, two processes",
    "ours_bound": "InstructRec, threads bound to cores",
    "ours_asleep": "InstructRec, threads asleep at once",
    "ours_not_fused": "InstructRec, AdamW in separate operations",
    "ours_unsorted": "InstructRec, rows not sorted by length",
    "trl": "TRL, its defaults (fp32 weights, checkpointing)",
    "trl_bf16": "TRL, bf16 weights, checkpointing",
    "trl_grouped_checkpointing": "TRL, bf16 weights, checkpointing, grouped by length",
    "trl_grouped": "TRL, bf16 weights, grouped by length",
    "trl_split": "TRL, bf16 weights, grouped by length, micro-batches of a quarter",
    "trl_padding_free": "TRL, bf16 weights, grouped by length, padding-free",
    "trl_allocator": "TRL, bf16 weights, grouped by length, memory kept as we do",
    "trl_packed": "TRL, bf16 weights, packed to 1,024 tokens",
}
_SWITCHES = ("ours_bound", "ours_asleep", "ours_not_fused", "ours_unsorted")  # too near to the others for a picture
Key = tuple[str, str, int, str]  # set, device, threads, arm


def by_arm(found: Sequence[Result]) -> dict[Key, list[Result]]:
    """Results of one arm on one set, in the order of rounds."""
    groups: dict[Key, list[Result]] = {}
    for one in sorted(found, key=lambda one: one["round"]):
        threads = one["threads"] * (2 if one["arm"] == "ours_two_processes" else 1)
        groups.setdefault((one["set"], one["device"], threads, one["arm"]), []).append(one)
    return groups


def speed(one: Result) -> float:
    """Tokens of rows a second, padding left out."""
    return float(one["tokens"]) / float(one["seconds"])


def per_core(one: Result) -> float:
    """Tokens a second of processor time: what stays of a speed where other work takes its part of the cores."""
    return float(one["tokens"]) / float(one["processor_seconds"])


def share(one: Result) -> float:
    """Of the speed at which the same rows would be done if matrix products were all there is."""
    spent = one["seconds" if one["device"] == "cuda" else "processor_seconds"]
    return float(one["operations"]) / (float(one["rate"]) * float(spent))


def ratio(ours: Sequence[Result], other: Sequence[Result], of: Callable[[Result], float] = speed) -> float | None:
    """Median over rounds of the speeds' ratio; None without a common round."""
    theirs = {one["round"]: of(one) for one in other}
    common = [of(one) / theirs[one["round"]] for one in ours if one["round"] in theirs]
    return statistics.median(common) if common else None


def at_equal_memory(groups: Mapping[Key, list[Result]], where: tuple[str, str, int]) -> str:
    """How much faster the quickest of our arms is that takes no more memory than an arm of TRL's, for the arm where
    this is least; nothing where either side was not measured in the same rounds."""

    def memory(arm: str) -> float:
        return statistics.median(float(one["memory"]) for one in groups[(*where, arm)])

    arms = [key[3] for key in groups if key[:3] == where]
    ours = [arm for arm in arms if arm.startswith("ours")]
    found: list[tuple[float, str, str]] = []
    beyond = []
    for other in [arm for arm in arms if not arm.startswith("ours")]:
        fitting = [arm for arm in ours if memory(arm) <= memory(other)]
        ratios = [(ratio(groups[(*where, arm)], groups[(*where, other)]), arm) for arm in fitting]
        known = [(value, arm) for value, arm in ratios if value is not None]
        if known:
            best, arm = max(known)
            found.append((best, other, arm))
        elif not fitting:
            beyond.append(other)
    if not found:
        return ""
    least, other, arm = min(found)
    text = "At equal memory: with no more than each of TRL's settings takes, InstructRec is at least "
    text += f"{least:.2f} times as fast ({NAMES[arm]} against {NAMES[other]})."
    if beyond:
        text += f" Less memory than any of ours: {', '.join(NAMES[one] for one in beyond)}."
    return text


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def _beside(own: Sequence[Result], other: Sequence[Result]) -> str:
    """How much higher the loss is than ours of the same rounds: mean and standard error, from three rounds on."""
    ours = {one["round"]: one["held_loss"] for one in own}
    apart = [one["held_loss"] - ours[one["round"]] for one in other if one["round"] in ours]
    if len(apart) < 3:
        return ""
    return f"{statistics.mean(apart):+.3f} ± {statistics.stdev(apart) / len(apart) ** 0.5:.3f}"


def _row(groups: Mapping[Key, list[Result]], key: Key) -> str:
    results = groups[key]
    own = groups.get((*key[:3], "ours"), [])
    faster, lighter = ratio(own, results), ratio(own, results, per_core)
    median = statistics.median
    losses = _spread([one["held_loss"] for one in results])
    parts = [
        NAMES[key[3]],
        str(len(results)),
        f"{median(one['supervised'] / one['seconds'] for one in results):,.0f}",
        f"{median(speed(one) for one in results):,.0f}",
        f"{median(per_core(one) for one in results):,.0f}",
        f"{median(share(one) for one in results):.0%}",
        f"{median(1 - one.get('shared', 0.0) for one in results):.0%}",
        f"{median(one['memory'] for one in results) / 1e6:,.0f}",
        losses,
        "" if key[3] == "ours" else _beside(own, results),
        "" if faster is None or lighter is None or key[3] == "ours" else f"{faster:.2f}, {lighter:.2f}",
    ]
    return "| " + " | ".join(parts) + " |"


def page(found: Sequence[Result], titles: Mapping[str, str]) -> str:
    """The page."""
    commits = sorted({f"{one['commit']}{' with changes' if one['dirty'] else ''}" for one in found})
    versions = sorted({f"{name} {number}" for one in found for name, number in one["versions"].items()})
    lines = ["# Speed and memory of tuning", "", "`make bench-train`" + ("" if found else ": nothing measured yet.")]
    lines += [
        "",
        f"Commit {', '.join(commits)}; {', '.join(versions)}.",
        "LoRA of rank 16 on all linear layers; both sides get the same token ids, flags of what is supervised,",
        "rows to a step, steps and learning rate. Medians over runs in processes of their own, the sides taking",
        "turns, without the first step. Tokens are those of rows, padding left out. A core: tokens a second of",
        "processor time, which other work on the machine changes little. Share: of the speed if the matrix",
        "products of the rows, each by itself (forward, and backward for inputs, bench/cost.py; recomputation and",
        "the adapter left out), were all there is, at the rate of a large product in the same process, both in",
        "processor time (on CUDA by the clock). Read: of the rows' tokens, those that went through the model; the",
        "others are the beginning of another row of the batch too and were read there. Memory: the most above the",
        "process with the model loaded. Loss: nats a token on rows kept out, after the steps, median and range; less",
        "ours: mean of the rounds' differences and its standard error. Ours against it: medians of the rounds' ratios,",
        "of tokens a second and of tokens a second of processor time.",
        "",
        "![Speed against memory](train.png)",
        "",
    ]
    groups = by_arm(found)
    for name, device, threads in sorted({key[:3] for key in groups}, key=lambda key: (key[1], -key[2], key[0])):
        where = device if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
        rows = next(
            one["batch_rows"] for key, part in groups.items() if key[:3] == (name, device, threads) for one in part
        )
        lines += [f"## {titles[name]}, {rows} to a step, {where}", ""]
        columns = [
            "runs",
            "supervised tokens/s",
            "tokens/s",
            "a core",
            "share",
            "read",
            "memory, MB",
            "loss",
            "less ours",
        ]
        lines += ["| | " + " | ".join([*columns, "ours against it"]) + " |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |"]
        lines += [_row(groups, (name, device, threads, arm)) for arm in NAMES if (name, device, threads, arm) in groups]
        lines += ["", equal, ""] if (equal := at_equal_memory(groups, (name, device, threads))) else [""]
    return "\n".join(lines)


def where_it_goes(profiles: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """A table of the shares of time, an operation's kind a row and a set a column; nothing without profiles."""
    if not profiles:
        return ""
    first = profiles[0]["shares"]
    kinds = sorted({kind for one in profiles for kind in one["shares"]}, key=lambda kind: -first.get(kind, 0))
    commits = ", ".join(sorted({f"{one['commit']}{' with changes' if one['dirty'] else ''}" for one in profiles}))
    lines = ["", "## Where the time goes", ""]
    lines += [
        f"`python bench/train.py --profile`, commit {commits}: shares of the time of InstructRec's steps, by torch's"
    ]
    lines += ["profiler, one thread. What it takes itself is in the rest, beside the time between operations.", ""]
    lines += ["| | " + " | ".join(titles[one["set"]] for one in profiles) + " |"]
    lines += ["| --- |" + " ---: |" * len(profiles)]
    lines += [
        f"| {kind} | " + " | ".join(f"{one['shares'].get(kind, 0.0):.0%}" for one in profiles) + " |" for kind in kinds
    ]
    return "\n".join([*lines, ""])


def draw(found: Sequence[Result], titles: Mapping[str, str], file: Path) -> None:
    """Speed against memory, a panel for each set, device and number of threads that has several arms, if any has."""
    from matplotlib.figure import Figure

    groups = {key: part for key, part in by_arm(found).items() if key[3] not in _SWITCHES}
    arms = Counter(key[:3] for key in groups)
    panels = sorted(arms, key=lambda key: (key[1], -key[2], key[0]))
    if panels and max(arms.values()) > 1:
        panels = [panel for panel in panels if arms[panel] > 1]
    if not panels:
        return
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, device, threads) in zip(axes.flat, panels, strict=False):
        for number, arm in enumerate(NAMES):
            results = groups.get((name, device, threads, arm))
            if results:
                x = statistics.median(one["memory"] for one in results) / 1e6
                y = statistics.median(speed(one) for one in results)
                axis.scatter([x], [y], color=f"C{number % 10}", marker="o" if arm.startswith("ours") else "s")
                axis.annotate(arm.replace("_", " "), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        where = device if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
        axis.set_title(f"{titles[name]}, {where}", fontsize=9)
        axis.set_xlabel("MB above the loaded model", fontsize=8)
        axis.set_ylabel("tokens/s", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.margins(x=0.25)
        axis.set_xlim(left=0)
    figure.savefig(file, dpi=110)


__all__ = ["NAMES", "at_equal_memory", "by_arm", "draw", "page", "per_core", "ratio", "share", "speed", "where_it_goes"]
