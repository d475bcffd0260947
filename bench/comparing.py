"""`python bench/comparing.py`: how often `instructrec compare` claims what is not there, on made-up scores.

The table of docs/comparing.md.

Rows of two equal settings: a spread of 0.7 that lasts over seeds (the same rows for all seeds, unless each has rows of
its own), one of 0.7 that is left to each answer, and one between seeds. Beside it the same by a bootstrap over
(row, seed) and by a t-test over the means of seeds; and the power at the difference that is said to be detectable.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec import console
from instructrec.files import write_text
from instructrec.measures.comparing import ALPHA, contrast
from instructrec.measures.statistics import mean_of, paired_difference
from instructrec.measures.student import two_sided

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROWS = 40
CASES: dict[str, dict[str, Any]] = {
    "one seed": {"seeds": 1},
    "same rows, seeds alike": {},
    "same rows, seeds scatter a little": {"between": 0.1},
    "same rows, seeds scatter much": {"between": 0.5},
    "rows of its own, seeds alike": {"fresh": True},
    "rows of its own, seeds scatter a little": {"fresh": True, "between": 0.2},
    "rows of its own, seeds scatter much": {"fresh": True, "between": 0.5},
    "two seeds, same rows, scatter much": {"seeds": 2, "between": 0.5},
    "five seeds, same rows, scatter much": {"seeds": 5, "between": 0.5},
}


def drawn(rng: np.random.Generator, seeds: int = 3, between: float = 0.0, fresh: bool = False) -> np.ndarray:
    """[seeds, rows] differences of equal settings."""
    lasting = rng.normal(0, 0.7, (seeds, ROWS) if fresh else (1, ROWS))
    found: np.ndarray = rng.normal(0, between, (seeds, 1)) + lasting + rng.normal(0, 0.7, (seeds, ROWS))
    return found


def rates(times: int, case: dict[str, Any]) -> list[float | None]:
    """Shares of claims: by `contrast`, by the bootstrap, by means of seeds; and of `contrast` at what is detectable."""
    rng, claims = np.random.default_rng(0), np.zeros(4)
    for _ in range(times):
        values = drawn(rng, **case)
        seeds = [seed for seed in range(len(values)) for _ in range(ROWS)]
        names = [f"{seed * case.get('fresh', False)}-{row}" for seed in range(len(values)) for row in range(ROWS)]
        zero = mean_of(np.zeros(values.size))
        one = contrast(mean_of(values.ravel()), zero, names, seeds)
        cells = list(zip(names, seeds, strict=True))
        two = paired_difference(mean_of(values.ravel()), zero, clusters=cells, resamples=500)
        claims[:2] += one.p < ALPHA, two.low > 0 or two.high < 0
        if len(values) > 1:
            means = values.mean(1)
            claims[2] += two_sided(means.mean() / (means.std(ddof=1) / math.sqrt(len(means))), len(means) - 1) < ALPHA
        shifted = drawn(rng, **case).ravel() + (one.detectable() or 0)
        claims[3] += contrast(mean_of(shifted), zero, names, seeds).p < ALPHA
    return [None if place == 2 and case.get("seeds") == 1 else float(one / times) for place, one in enumerate(claims)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and put it into both pages; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000, help="simulated comparisons of each case")
    parser.add_argument("--print", action="store_true", help="leave the pages as they are")
    given = parser.parse_args(arguments)
    head = ["case", "claimed", "by a bootstrap over (row, seed)", "by a t-test over seeds", "power where detectable"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, case in CASES.items():
        cells = ["–" if one is None else f"{one:.1%}" for one in rates(given.times, case)]
        lines.append("| " + " | ".join([name, *cells]) + " |")
        console.say(lines[-1])
    table = "\n".join(lines)
    for page in () if given.print else (DOCS / "comparing.md", DOCS / "comparing.zh-CN.md"):
        text = page.read_text(encoding="utf-8")
        ends = r"(<!-- simulated -->\n).*?(<!-- /simulated -->)"
        write_text(page, re.sub(ends, lambda ends: f"{ends[1]}\n{table}\n\n{ends[2]}", text, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
