"""Numbers and texts as a reader sees them: percent, intervals, differences, durations; signs that can be seen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

DASH = "–"
SIGNS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
# Embeddings, overrides and isolates: they would turn what stands around them as well.
SIGNS |= {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def clean(value: Any) -> Any:
    """The value with null for numbers that are not finite and U+FFFD for lone surrogates, all the way down."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(entry) for key, entry in value.items()}
    return [clean(entry) for entry in value] if isinstance(value, list | tuple) else value


def visible(text: object) -> str:
    """Text with its control characters as signs that can be seen (a bell as ␇, what turns the direction of writing as
    [U+202E]), newlines and tabs left; a dash for None."""
    return DASH if text is None else str(text).translate(SIGNS)


def spoken(name: str) -> str:
    """A name from a file as a reader would say it."""
    return name.replace("_", " ").strip()


def number(value: float | None, unit: str) -> str:
    """`61.3%`, `0.482 nats`, `12.4`; a dash for a number that is not there."""
    if value is None:
        return DASH
    if unit == "%":
        return f"{value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def brief(value: float | None, unit: str) -> str:
    """The same for running text: whole percent."""
    return f"{whole(value)}%" if unit == "%" and value is not None else number(value, unit)


def interval(estimate: Mapping[str, Any], unit: str) -> str:
    """`49–72%`, or '' where no interval is known. Where an end is below zero: `-3 to 5%` would be hard to read with a
    dash between, so it is `−3…5%`."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None or low == high:
        return ""
    between = "…" if low < 0 else DASH
    ends = (whole(low), f"{whole(high)}%") if unit == "%" else (number(low, unit), number(high, unit))
    return between.join(ends).replace("-", "−")


def cell(estimate: Mapping[str, Any] | None, unit: str) -> str:
    """Number and interval: `61.3% (49–72%)`; a dash for a metric that was not measured."""
    if not estimate:
        return DASH
    known = interval(estimate, unit)
    return f"{number(estimate['value'], unit)} ({known})" if known else number(estimate["value"], unit)


def whole(value: float) -> str:
    """Rounded, and never "-0"."""
    return f"{value:.0f}".replace("-0", "0") if abs(value) < 1 else f"{value:.0f}"


def change(estimate: Mapping[str, Any] | None, unit: str, to: str = " to ") -> str:
    """A difference with its sign and interval: `+61.3 (49 to 72)`; the unit is that of the row it stands in."""
    if not estimate or estimate["value"] is None:
        return DASH
    low, high = estimate["low"], estimate["high"]
    shown = signed(estimate["value"], unit)
    if low is None or high is None or low == high:
        return shown
    digits = 0 if max(abs(low), abs(high)) >= 9.95 else 2  # "26.", "1.3e+02" are no numbers for readers
    ends = (whole(end) if unit == "%" or not digits else f"{end:#.2g}" for end in (low, high))
    return f"{shown} ({to.join(end.replace('-', '−') for end in ends)})"


def signed(value: float | None, unit: str) -> str:
    """`+61.3`, `−0.12`."""
    if value is None:
        return DASH
    digits = ".1f" if unit == "%" else "#.3g"
    return f"{value:+{digits}}".replace("-", "−")


def count(amount: int) -> str:
    """`135 M`, `4.88 M`, `12,800`."""
    for size, name in ((10**9, "B"), (10**6, "M")):
        if amount >= size:
            return f"{number(amount / size, '')} {name}"
    return f"{amount:,}"


def known(estimate: Mapping[str, Any] | None) -> bool:
    """Whether there is an estimate with a value and both ends."""
    return bool(estimate) and None not in (estimate["value"], estimate["low"], estimate["high"])  # type: ignore[index]


def side(estimate: Mapping[str, Any] | None, middle: float = 0.0) -> int:
    """1 where the whole interval lies above `middle`, -1 where below, 0 where it holds it or is not known.

    An interval of no width (`low == high`) means that none is known: nothing is claimed from it.
    """
    if not estimate or not known(estimate) or estimate["low"] == estimate["high"]:
        return 0
    return (estimate["low"] > middle) - (estimate["high"] < middle)
