"""Pictures by matplotlib: the loss curve and the learning curve (SVG for the report, PNG for the run folder).

Colours are those of report.css, so that a picture follows light and dark; they are the colour-blind safe ones of Okabe
and Ito, slightly darkened. Pictures written by hand are in `drawings`.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.evaluation.words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What matplotlib draws with on white paper, and the variable of report.css that takes its place in the report.
INK, FAINT, RAW = "#1d2530", "#d9dee6", "#b9c2cf"
LINES = ("#0b6bb8", "#c25e00", "#00806a", "#a64d86", "#7a6a00")
VARIABLES = {INK: "--ink", FAINT: "--line", RAW: "--raw"} | {
    colour: f"--series-{place}" for place, colour in enumerate(LINES)
}
SMOOTHED = 40  # with more steps than this the training loss is drawn as a running mean over the raw line


def loss_curve(training: dict[str, Any], width: float = 7.2, words: Words | None = None) -> Figure:
    """Training loss by step, loss on each held-out set, best step marked; `width` in inches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    words = words or Words()
    figure = Figure(figsize=(width, 3.3 if width > 5 else 3.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    _training_line(axes, training["steps"], words)
    for place, name in enumerate(held_out_sets(training)):
        points = [(look["step"], found) for look in training["looks"] if (found := _loss(look, name)) is not None]
        steps, losses = zip(*points, strict=True)
        called = words("curve.seen") if name == "seen" else words.named("set", name)
        said = called.replace("$", r"\$")  # matplotlib would read $…$ as a formula
        axes.plot(
            steps,
            losses,
            color=LINES[place % len(LINES)],
            label=words("curve.held_out", name=said),
            linewidth=2,
            marker="os^Dv"[place % 5],
            markersize=4.5,
        )
    best = training.get("best_step")
    if best is not None:
        axes.axvline(best, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        left = best > sum(axes.get_xlim()) / 2  # the words go where there is room
        axes.annotate(
            words("curve.kept", step=f"{best:,}"),
            (best, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-6 if left else 6, -4),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=9,
            color=INK,
        )
    axes.set_xlabel(words("curve.step"))
    axes.set_ylabel(words("curve.loss"))
    axes.set_ylim(bottom=0)
    axes.set_facecolor("none")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if width > 5 else 5, integer=True))
    if axes.get_legend_handles_labels()[0]:
        columns = 4 if width > 5 else 1
        style = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 1.6}
        figure.legend(loc="outside upper left", ncols=columns, **style)
    return figure


def learning_curve(curve: dict[str, Any], width: float = 7.2) -> Figure:
    """Loss on held-out rows by the number of rows trained on, and where twice as many would lead; `width` in inches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(width, 3.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    rows, found, gain = curve["rows"], curve["losses"], curve["next_doubling"]
    for place, (xs, losses, label) in enumerate(
        (
            (rows, found, "measured, 95% of draws of held-out rows"),
            ([2 * rows[-1]], [_after(found[-1]["value"], gain)], "expected with twice the rows"),
        )
    ):
        values = [loss["value"] for loss in losses]
        below = [max(0.0, loss["value"] - loss["low"]) for loss in losses]
        above = [max(0.0, loss["high"] - loss["value"]) for loss in losses]
        style: dict[str, Any] = {"color": LINES[place], "marker": "os"[place], "linewidth": 2, "capsize": 4}
        axes.errorbar(xs, values, yerr=[below, above], label=label, **style)
    axes.plot(
        [rows[-1], 2 * rows[-1]],
        [found[-1]["value"], found[-1]["value"] - gain["value"]],
        color=LINES[1],
        linewidth=1.2,
        linestyle=(0, (4, 3)),
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks([*rows, 2 * rows[-1]], [f"{count:,}" for count in (*rows, 2 * rows[-1])])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rows trained on")
    axes.set_ylabel("loss on held-out rows (nats per token)")
    axes.set_facecolor("none")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _after(loss: float, gain: dict[str, Any]) -> dict[str, float]:
    """The loss that a fall leads to, with its interval."""
    return {"value": loss - gain["value"], "low": loss - gain["high"], "high": loss - gain["low"]}


def _training_line(axes: Axes, entries: list[dict[str, Any]], words: Words) -> None:
    points = [(entry["step"], entry["loss"]) for entry in entries if entry.get("loss") is not None]
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    if len(points) <= SMOOTHED:
        axes.plot(steps, losses, color=RAW, linewidth=1.6, label=words("curve.training"))
        return
    width = max(5, len(points) // 25)
    means = [sum(part) / len(part) for part in (losses[max(0, end - width) : end] for end in range(1, len(points) + 1))]
    thin = max(1, len(points) // 600)  # a report of a long run must not weigh megabytes
    axes.plot(steps[::thin], losses[::thin], color=FAINT, linewidth=0.8)
    axes.plot(steps[::thin], means[::thin], color=RAW, linewidth=1.8, label=words("curve.mean", n=width))


def held_out_sets(training: dict[str, Any]) -> list[str]:
    """Names of the sets that the looks measured a loss on, in the order they were first seen."""
    names = dict.fromkeys(name for look in training["looks"] for name in look if _loss(look, name) is not None)
    return list(names)


def _loss(look: dict[str, Any], name: str) -> float | None:
    found = look.get(name)
    return found.get("loss") if isinstance(found, dict) else None


def svg(figure: Figure, name: str) -> str:
    """The figure as SVG to stand inside an HTML page: text stays text, colours become variables of the page.

    `name` goes into the ids, so that two pictures of one page do not share clip paths.
    """
    from matplotlib import rc_context

    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's own fonts draw the text
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg xmlns="http://www.w3.org/2000/svg" \1>', text, count=1)
    text = text.replace("xlink:href", "href")  # its namespace was declared in the tag just replaced
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()


def save_loss_png(training: dict[str, Any], path: Path) -> None:
    """The loss curve as a PNG."""
    save_png(loss_curve(training), path)


def save_png(figure: Figure, path: Path) -> None:
    """A figure as a PNG on white, 144 dots an inch."""
    figure.patch.set(facecolor="white", alpha=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=144)
