"""Which rows go together in which step, as arrays: millions of short lists would take gigabytes.

N rows dealt, M micro-batches, S steps, P pools of Q rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


class Batches(Sequence[list[int]]):
    """Micro-batches: numbers of rows one after the other, [N], and where each batch ends, [M]."""

    def __init__(self, numbers: NDArray[Any], ends: Places) -> None:
        self.numbers, self.ends = numbers, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> Batches: ...
    def __getitem__(self, place: int | slice) -> list[int] | Batches:
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            if step != 1:
                raise ValueError("batches are taken one after the other")
            before = self._start(first)
            last = max(first, last)
            return Batches(self.numbers[before : self._start(last)], self.ends[first:last] - before)
        place = range(len(self))[place]
        found: list[int] = self.numbers[self._start(place) : self.ends[place]].tolist()
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def _start(self, place: int) -> int:
        return int(self.ends[place - 1]) if place else 0

    @property
    def starts(self) -> Places:
        """Where each batch begins, [M]."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64) if len(self) else self.ends

    @property
    def sizes(self) -> Places:
        """Rows of each batch, [M]."""
        return self.ends - self.starts

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        """The largest of its rows' values in each batch, [M]. values: one for each row there is."""
        return np.maximum.reduceat(values[self.numbers], self.starts) if len(self) else values[:0]

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of its rows' values in each batch, [M]."""
        return np.add.reduceat(values[self.numbers], self.starts) if len(self) else values[:0]

    @classmethod
    def of(cls, batches: Sequence[Sequence[int]]) -> Batches:
        """The same from lists."""
        if isinstance(batches, Batches):
            return batches
        flat = np.array([number for batch in batches for number in batch], dtype=np.int32)
        return cls(flat, np.cumsum([len(batch) for batch in batches], dtype=np.int64))


class Steps(Sequence[list[list[int]]]):
    """Steps of micro-batches. ends: number of micro-batches up to the end of each step, [S]."""

    def __init__(self, batches: Batches, ends: Places) -> None:
        self.batches, self.ends = batches, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> list[list[int]]: ...
    @overload
    def __getitem__(self, place: slice) -> Steps: ...
    def __getitem__(self, place: int | slice) -> list[list[int]] | Steps:
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            if step != 1:
                raise ValueError("steps are taken one after the other")
            last = max(first, last)
            before = self._start(first)
            return Steps(self.batches[before : self._start(last)], self.ends[first:last] - before)
        place = range(len(self))[place]
        return list(self.batches[self._start(place) : int(self.ends[place])])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def _start(self, place: int) -> int:
        return int(self.ends[place - 1]) if place else 0


def greedy(sizes: NDArray[Any], tokens: int, rows: int | None) -> NDArray[np.bool_]:
    """Where a new micro-batch begins in each of P pools of Q rows, sizes [P, Q] -> [P, Q].

    A batch takes rows while it has at most `tokens` tokens, padding included, and at most `rows` rows; a longer row
    gets a batch of its own. All pools go side by side, so that what is left to do one by one is the Q places of a pool.
    """
    begins = np.zeros(sizes.shape, dtype=bool)
    longest = np.zeros(len(sizes), dtype=np.int64)
    count = np.zeros(len(sizes), dtype=np.int64)
    for place in range(sizes.shape[1]):
        size = sizes[:, place]
        longest = np.maximum(longest, size)
        full = longest * (count + 1) > tokens
        if rows:
            full |= count == rows
        full |= count == 0
        begins[:, place] = full
        longest = np.where(full, size, longest)
        count = np.where(full, 1, count + 1)
    return begins
