"""Execution bias: what a model prefers whatever it is asked. Statistics of choices, and exchanges in texts.

N rows, L labels, Q questions, P places of an option.

Distances between two distributions are total variation in percent, 50 · sum |p - q|: the share of choices that would
have to be moved to make them equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .statistics import Floats, Statistic, mean_of

PERCENT = (0.0, 100.0)


def distance_from_truth(chosen: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Statistic:
    """How far the labels that were chosen are distributed from the right ones, whichever rows they stand at."""
    places = {label: number for number, label in enumerate(dict.fromkeys([*labels, *truth]))}
    sums = np.zeros((len(chosen), 2 * len(places)))
    for row, (guess, right) in enumerate(zip(chosen, truth, strict=True)):
        sums[row, places[guess]] += 1
        sums[row, len(places) + places[right]] += 1

    def finish(total: Floats) -> Floats:
        first, second = np.split(total, 2, axis=1)
        return np.asarray(50.0 * np.abs(first - second).sum(axis=1) / first.sum(axis=1))

    return Statistic(sums, finish, PERCENT)


def distance_from_even(shares: Floats) -> Statistic:
    """How far the mean of distributions [N, L] is from an even one."""
    size = shares.shape[1]

    def finish(total: Floats) -> Floats:
        mean = total / total.sum(axis=1, keepdims=True)
        return np.asarray(50.0 * np.abs(mean - 1.0 / size).sum(axis=1))

    return Statistic(shares, finish, (0.0, 100.0 * (1 - 1 / size)))


def position_choices(places: Floats) -> tuple[Statistic, Statistic]:
    """Of the places chosen [Q, P], each question asked once with each option in each place: how far they are from even,
    and the share of questions whose chosen option is not the same in every order.

    places[q, r]: the place that was chosen in rotation r, in which option o stands in place (o + r) mod P.
    """
    count = places.shape[1]
    even = np.stack([np.bincount(row, minlength=count) for row in places.astype(np.intp)]).astype(np.float64)
    options = (places - np.arange(count)) % count
    changes = 100.0 * (options != options[:, :1]).any(axis=1)
    return distance_from_even(even), mean_of(changes, PERCENT)


class Exchange:
    """Words that take each other's place in a text, all at once.

    table: word -> what takes its place; words that may begin a sentence in lower case, names as they are spelled.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = dict(table)
        ordered = sorted(self.table, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_bounded, ordered)), re.I) if ordered else None

    def __call__(self, text: str) -> str:
        """The text after the exchange."""
        return self._pattern.sub(self._other, text) if self._pattern else text

    def _other(self, match: re.Match[str]) -> str:
        word = match[0]
        if word not in self.table and word.lower() not in self.table:
            return word
        other = self.table.get(word) or self.table[word.lower()]
        if word.lower() == "her" and not re.match(r"\s+\w", match.string[match.end() :]):
            other = "him"  # "for her." is "for him."; "her lamp" is "his lamp"
        if word in self.table:
            return other
        return other.upper() if word.isupper() and len(word) > 1 else other[:1].upper() + other[1:]


def exchanges(text: str, lists: Mapping[str, Any], kind: str) -> Exchange | None:
    """What to exchange in a text: `names` for others of the same gender, `genders`, or `cities`; None if it has none.

    lists: `male`, `female`, `cities` and `pairs` of one language.
    """
    if kind == "genders":
        pairs = [*map(tuple, lists["pairs"]), *zip(lists["male"], lists["female"], strict=False)]
        table = dict(pairs) | {second: first for first, second in pairs}
        if "her" in table:
            table |= {"his": "her", "her": "his"}
        found = Exchange(table)
        return found if found(text) != text else None
    table = {}
    for group in ("male", "female") if kind == "names" else ("cities",):
        present = [name for name in lists[group] if re.search(_bounded(name), text)]
        free = [name for name in lists[group] if name not in present]
        table |= dict(zip(present, free, strict=False))
    return Exchange(table) if table else None


def _bounded(word: str) -> str:
    if word[0].isascii():
        return rf"\b{re.escape(word)}\b"
    return f"(?<!其){word}" if word == "他" else word  # 其他 is "other"
