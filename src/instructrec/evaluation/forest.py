"""A forest plot: differences as points with their intervals around zero, one line each, on one scale.

Lines are inline SVGs as wide as the place they stand in, with all places in percent: text stays HTML, so that a phone
shows the same plot. Large mark: all seeds; small marks below it: each seed. Filled: real; half-tone: a hint; hollow:
none seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from instructrec.evaluation.numbers import visible

HEIGHT = 34  # pixels of a line
MIDDLE = 13
SEEDS_AT = 26


@dataclass(frozen=True)
class Scale:
    """From `low` to `high`, with marks at `ticks`; `reach` is how much of the width at either side stays free."""

    low: float
    high: float
    ticks: tuple[float, ...]
    reach: float = 5.0

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]]) -> Scale:
        """The scale that holds zero, all intervals and all seeds."""
        found = [0.0]
        for entry in entries:
            found += [entry["value"], entry["low"], entry["high"], *entry["by_seed"]]
        low, high = min(found), max(found)
        if low == high:
            low, high = -1.0, 1.0
        step = _step((high - low) / 5)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(place * step, 12) for place in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def across(self, value: float) -> str:
        """The place of a value, `41.20%`."""
        share = (value - self.low) / (self.high - self.low)
        return f"{self.reach + (100 - 2 * self.reach) * share:.2f}%"


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def line(entry: Mapping[str, Any], scale: Scale, title: str) -> str:
    """One difference as an SVG. title: what a pointer or a screen reader is told."""
    verdict = entry.get("verdict", "none")
    parts = [_grid(scale, HEIGHT)]
    value, low, high = (scale.across(entry[key]) for key in ("value", "low", "high"))
    if entry["low"] < entry["high"]:
        parts.append(f'<line class="reach {verdict}" x1="{low}" x2="{high}" y1="{MIDDLE}" y2="{MIDDLE}"/>')
        for end in (low, high):
            parts.append(f'<line class="reach {verdict}" x1="{end}" x2="{end}" y1="{MIDDLE - 5}" y2="{MIDDLE + 5}"/>')
    parts.append(f'<circle class="mark {verdict}" cx="{value}" cy="{MIDDLE}" r="5.5"/>')
    if len(entry["by_seed"]) > 1:
        parts += [
            f'<circle class="seed" cx="{scale.across(one)}" cy="{SEEDS_AT}" r="2.5"/>' for one in entry["by_seed"]
        ]
    return (
        f'<svg class="forest-line" width="100%" height="{HEIGHT}" role="img"><title>{escape(visible(title))}</title>'
        f"{''.join(parts)}</svg>"
    )


def axis(scale: Scale, unit: str) -> str:
    """The marks of the scale with their numbers."""
    digits = 0 if all(float(tick).is_integer() for tick in scale.ticks) else 3 if unit == "nats" else 2
    texts = []
    for tick in scale.ticks:
        shown = "0" if not tick else f"{tick:+.{digits}f}".replace("-", "−")
        if digits and tick:
            shown = shown.rstrip("0").rstrip(".")
        texts.append(f'<text x="{scale.across(tick)}" y="14" text-anchor="middle">{shown}</text>')
    return f'<svg class="forest-axis" width="100%" height="20" aria-hidden="true">{"".join(texts)}</svg>'


def _grid(scale: Scale, height: int) -> str:
    lines = []
    for tick in scale.ticks:
        kind = "zero" if not tick else "grid-line"
        place = scale.across(tick)
        lines.append(f'<line class="{kind}" x1="{place}" x2="{place}" y1="0" y2="{height}"/>')
    return "".join(lines)
