"""Pictures written by hand as SVG: bars, dots, curves over strength, calibration.

Those that are as wide as the place they stand in keep their text size from a phone to a desktop: coordinates across are
percentages (or lines are drawn in a stretched box with strokes that do not stretch), and every text is HTML beside
them. Colours are classes of report.css, so that a picture follows light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from instructrec.evaluation.numbers import known, side, visible

STEPS = (1, 2, 2.5, 5, 10)


def across(number: float, low: float, high: float) -> float:
    """Where a number stands between two ends, in percent from 0 to 100."""
    return 100 * min(max((number - low) / (high - low), 0), 1) if high > low else 0.0


def bar(
    estimate: Mapping[str, Any],
    series: int,
    top: float,
    *,
    height: int = 16,
    title: str = "",
    marks: Mapping[str, float] | None = None,
) -> str:
    """One bar with its interval as an SVG that is as wide as the place it stands in; `top` is its full width.

    `height` is in pixels; `title` is what a pointer or a screen reader is told, none if a text says it already; `marks`
    are lines across the bar: class -> number.
    """

    def place(number: float) -> str:
        return f"{across(number, 0, top):.2f}%" if top > 0 else "0%"

    value, low, high = (place(estimate[key]) for key in ("value", "low", "high"))
    lines = "".join(
        f'<line class="mark {kind}" x1="{place(number)}" x2="{place(number)}" y1="0" y2="{height}"/>'
        for kind, number in (marks or {}).items()
    )
    told = f'role="img"><title>{escape(visible(title))}</title>' if title else 'aria-hidden="true">'
    return (
        f'<svg class="bar" width="100%" height="{height}" {told}'
        f'<rect class="track" width="100%" height="{height - 4}" y="2" rx="2"/>'
        f'<rect class="fill-{series}" width="{value}" height="{height - 4}" y="2" rx="2"/>{lines}'
        f"{_whisker(estimate, low, high, height)}</svg>"
    )


def _whisker(estimate: Mapping[str, Any], low: str, high: str, height: int) -> str:
    if not estimate["low"] < estimate["high"]:
        return ""
    middle, tick = height / 2, height / 4
    ends = (middle - tick, middle + tick)
    spans = ((low, high, middle, middle), (low, low, *ends), (high, high, *ends))
    return "".join(f'<line class="whisker" x1="{x1}" x2="{x2}" y1="{y1:g}" y2="{y2:g}"/>' for x1, x2, y1, y2 in spans)


def dots(found: Sequence[tuple[int, Mapping[str, Any]]], low: float, high: float, *, title: str = "") -> str:
    """Dots with intervals, one line for each of (series, estimate), between two ends, with a line at zero; one whose
    interval holds zero is hollow."""
    height = 12 * len(found) + 6
    zero = across(0, low, high)
    parts = [f'<line class="zero" x1="{zero:.2f}%" x2="{zero:.2f}%" y1="0" y2="{height}"/>']
    for line, (series, estimate) in enumerate(found):
        middle = 12 * line + 9
        value, start, end = (across(estimate[key], low, high) for key in ("value", "low", "high"))
        hollow = "" if side(estimate) else " hollow"
        parts.append(
            f'<line class="stroke-{series}" x1="{start:.2f}%" x2="{end:.2f}%" y1="{middle}" y2="{middle}"/>'
            f'<circle class="dot-{series}{hollow}" cx="{value:.2f}%" cy="{middle}" r="4.5"/>'
        )
    told = f'role="img"><title>{escape(visible(title))}</title>' if title else 'aria-hidden="true">'
    return f'<svg class="dots" width="100%" height="{height}" {told}{"".join(parts)}</svg>'


def curve(lines: Sequence[tuple[int, Sequence[tuple[float, Mapping[str, Any]]]]], top: float, title: str) -> str:
    """Scores over strength in a stretched box of 100 x 100: for each series a line, its band, and dots."""
    strengths = [strength for _, points in lines for strength, _ in points]
    first, last = min(strengths, default=0), max(strengths, default=1)

    def at(strength: float, score: float) -> str:
        return f"{across(strength, first, last):.2f} {100 - across(score, 0, top):.2f}"

    parts = [f'<path class="level" d="M0 {level}H100"/>' for level in (0, 25, 50, 75, 100)]
    for series, points in lines:
        upper = [at(strength, estimate["high"]) for strength, estimate in points]
        lower = [at(strength, estimate["low"]) for strength, estimate in reversed(points)]
        middle = [at(strength, estimate["value"]) for strength, estimate in points]
        if len(points) > 1:
            parts.append(f'<path class="band-{series}" d="M{"L".join([*upper, *lower])}Z"/>')
            parts.append(f'<path class="line-{series}" d="M{"L".join(middle)}"/>')
        parts += [f'<path class="point-{series}" d="M{place}h0"/>' for place in middle]
    return (
        f'<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" role="img">'
        f"<title>{escape(visible(title))}</title>"
        f"{''.join(parts)}</svg>"
    )


def reliability(bins: Sequence[Mapping[str, Any]], series: int, titles: Sequence[str]) -> str:
    """Share of right answers over the probability given, in a square of 100 x 100; the area of a dot grows with its
    rows. bins: confidence and accuracy in percent, n; titles: what each dot is told to be."""
    most = max((one["n"] for one in bins), default=0)
    parts = ['<rect class="track" width="100" height="100"/>', '<path class="diagonal" d="M0 100L100 0"/>'] + [
        f'<path class="level" d="M0 {level}H100"/>' for level in (25, 50, 75)
    ]
    points = [f"{one['confidence']:.1f} {100 - one['accuracy']:.1f}" for one in bins]
    if len(points) > 1:
        parts.append(f'<path class="line-{series}" d="M{"L".join(points)}"/>')
    for one, told in zip(bins, titles, strict=True):
        radius = 1.5 + 4 * (one["n"] / most) ** 0.5
        parts.append(
            f'<circle class="dot-{series}" cx="{one["confidence"]:.1f}" cy="{100 - one["accuracy"]:.1f}" '
            f'r="{radius:.1f}">'
            f"<title>{escape(visible(told))}</title></circle>"
        )
    return f'<svg class="reliability" viewBox="-6 -6 112 112" role="img">{"".join(parts)}</svg>'


def ends(estimates: Sequence[Mapping[str, Any]]) -> tuple[float, float, list[float]]:
    """A span that holds zero and every interval as far as −100 to 100, in whole steps, and its ticks."""
    numbers = [0.0, *(float(one[key]) for one in estimates if known(one) for key in ("value", "low", "high"))]
    low, high = max(min(numbers), -100.0), min(max(numbers), 100.0)
    span = max(high - low, 1.0)
    size = 1.0
    while True:
        step = next((size * factor for factor in STEPS if span / (size * factor) <= 5), None)
        if step:
            break
        size *= 10
    first, last = int(low // step), -int(-high // step)
    return first * step, max(last, first + 1) * step, [step * tick for tick in range(first, max(last, first + 1) + 1)]
