"""Several sources in one training run: what share each has, and which of its rows an epoch meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


def shares(sizes: Sequence[int], weights: Sequence[float | None], temperature: float = 1.0) -> list[float]:
    """The share p_i of each source, sum 1: by its weight (1 where only others have one), else p_i ∝ n_i^(1/T).

    T = 1 is every row once, T = 2 brings small sources up, a large T makes all equal (as in mT5, arXiv 2010.11934).
    Raises `InputError` where both are given.
    """
    if any(weight is not None for weight in weights):
        if temperature != 1:
            raise InputError(
                f"mix_temperature: weights are given already (got {temperature:g} as well, want one of them)"
            )
        parts = [1.0 if weight is None else weight for weight in weights]
    else:
        # As logarithms: 1 / T of a small T would overflow.
        logs = np.log(np.maximum(sizes, 1)) / temperature
        parts = np.exp(logs - logs.max()).tolist()
    parts = [part if size else 0.0 for part, size in zip(parts, sizes, strict=True)]
    return [part / sum(parts) for part in parts]


def counts(parts: Sequence[float], total: int) -> list[int]:
    """`total` rows dealt out by shares, exactly: the largest remainders are rounded up. No share gets nothing."""
    exact = [part * total for part in parts]
    dealt = [max(int(number), 1 if part else 0) for number, part in zip(exact, parts, strict=True)]
    order = sorted(range(len(parts)), key=lambda place: dealt[place] - exact[place])
    for place in order[: max(0, total - sum(dealt))]:
        dealt[place] += 1
    while sum(dealt) > total and max(dealt) > 1:
        dealt[dealt.index(max(dealt))] -= 1
    return dealt


@dataclass(frozen=True)
class Mixture:
    """Rows of each source by their numbers, and how many of them an epoch has."""

    rows: tuple[Sequence[int] | NDArray[np.int64], ...]
    counts: tuple[int, ...]
    seed: int

    def epoch(self, number: int) -> NDArray[np.int64]:
        """The rows of an epoch (from 0), sorted: of each source the next ones of an endless series of shuffled passes.

        So rows of a source are met equally often, give or take one, over however many epochs; a pure function.
        """
        chosen: list[NDArray[np.int64]] = []
        for source, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True)):
            place, end = number * count, (number + 1) * count
            while place < end:
                turn, start = divmod(place, len(rows))
                order = np.random.default_rng([self.seed, source, turn]).permutation(len(rows))
                part = order[start : start + end - place]
                chosen.append(np.asarray(rows)[part])
                place += len(part)
        return np.sort(np.concatenate(chosen))
