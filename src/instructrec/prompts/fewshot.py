"""Few-shot prompting: solved examples put in front of the question, as earlier turns of the conversation.

Which examples (`BY`) and in which order (`ORDERS`) changes what a model answers more than most wordings do
(arXiv 2101.06804 for the nearest ones, 2104.08786 for the order).

N rows, M examples to choose from, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.records import Record, Turn
from ..errors import InputError, did_you_mean
from ..measures.text import HAN, KANA, normalise, tokens

BY = ("random", "balanced", "bm25", "embedding", "diverse")
ORDERS = ("auto", "nearest_last", "nearest_first", "random", "shortest_first", "longest_first")
NEAR = ("bm25", "embedding", "diverse")  # ways that know how near an example is
BALANCE = 0.5  # of nearness and difference from the examples chosen already, in `diverse`

Vectors = Callable[[Sequence[Record]], NDArray[np.float64]]  # N records -> [N, D]


def pick_shots(record: Record, pool: Sequence[Record], shots: int, seed: int) -> list[Record]:
    """`shots` examples for a record, of its own task where the pool has any, else of all; never the row itself.

    Deterministic by seed and by the record, so that a row sees the same examples in whatever batch it is.
    """
    return Picker(pool, shots, seed=seed).pick(record)


class Picker:
    """Chooses examples for one row after the other; the same row always gets the same ones.

    by: random; balanced (labels in turn); bm25 (the nearest by the words they share, Han in characters and pairs of
    them); embedding (the nearest by the cosine of `vectors`, centred); diverse (near, but unlike each other: maximal
    marginal relevance, Carbonell and Goldstein 1998).  order: auto is nearest last where nearness is known, else as
    drawn.  vectors: what embedding and diverse need.

    Examples are of the row's own task where there are any; never the row itself, nor one that says the same.
    Raises InputError for what is not known or does not go together.
    """

    def __init__(
        self,
        pool: Sequence[Record],
        shots: int,
        *,
        by: str = "random",
        order: str = "auto",
        seed: int = 0,
        vectors: Vectors | None = None,
    ) -> None:
        for name, value, known in (("by", by, BY), ("order", order, ORDERS)):
            if value not in known:
                raise InputError(f"{name}: unknown '{value}', {did_you_mean(value, known)}")
        if order.startswith("nearest") and by not in NEAR:
            raise InputError(f"order: {order} needs to know what is near (got by={by}, want {', '.join(NEAR)})")
        if by in ("embedding", "diverse") and vectors is None:
            raise InputError(f"by: {by} needs a model's vectors")
        self.pool, self.shots, self.by, self.order, self.seed, self.vectors = pool, shots, by, order, seed, vectors
        self._said = [_said(record) for record in pool]

    def pick(self, record: Record) -> list[Record]:
        """Examples for a row, in the order in which they are to be shown."""
        same = _said(record)
        others = [place for place, said in enumerate(self._said) if said != same]
        own = [place for place in others if record.task is not None and self.pool[place].task == record.task]
        places = np.array(own or others, dtype=np.intp)
        if not self.shots or not len(places):
            return []
        generator = np.random.default_rng([self.seed, int(record.prompt_key, 16)])
        places = places[generator.permutation(len(places))]  # what is equally near is drawn
        near = self._nearness(record)[places] if self.by in NEAR else None
        chosen = self._choose(places, near)
        return [self.pool[place] for place in self._ordered(places, near, chosen)]

    def _choose(self, places: NDArray[np.intp], near: NDArray[np.float64] | None) -> list[int]:
        """Numbers into `places`, the best first."""
        count = min(self.shots, len(places))
        if self.by == "balanced":
            return self._balanced(places, count)
        if near is None:
            return list(range(count))
        if self.by == "diverse":
            return self._diverse(places, near, count)
        return np.argsort(-near, kind="stable")[:count].tolist()

    def _balanced(self, places: NDArray[np.intp], count: int) -> list[int]:
        """As many of each label as can be had; `places` are in random order, so labels take their turns in one too."""
        turns: dict[str, int] = {}
        ranked = []
        for number, place in enumerate(places):
            label = normalise(self.pool[place].answer)
            turns[label] = turns.get(label, -1) + 1
            ranked.append((turns[label], number))
        return [number for _, number in sorted(ranked)[:count]]

    def _diverse(self, places: NDArray[np.intp], near: NDArray[np.float64], count: int) -> list[int]:
        units = self._units[places]  # [M', D]
        chosen: list[int] = []
        closest = np.full(len(places), -1.0)  # cosine with the nearest example chosen already
        for _ in range(count):
            worth = BALANCE * near - (1 - BALANCE) * (closest if chosen else 0.0)
            worth[chosen] = -np.inf
            chosen.append(int(worth.argmax()))
            closest = np.maximum(closest, units @ units[chosen[-1]])
        return chosen

    def _ordered(self, places: NDArray[np.intp], near: NDArray[np.float64] | None, chosen: list[int]) -> list[int]:
        order = self.order
        if order == "auto":
            order = "random" if near is None else "nearest_last"
        if order.endswith("_last") and near is not None:
            chosen = sorted(chosen, key=lambda number: near[number])
        elif order == "nearest_first" and near is not None:
            chosen = sorted(chosen, key=lambda number: -near[number])
        elif order in ("shortest_first", "longest_first"):
            sign = 1 if order == "shortest_first" else -1
            chosen = sorted(chosen, key=lambda number: sign * len(self.pool[int(places[number])].last_user.content))
        elif near is not None:  # `places` are in random order: going by them is one
            chosen = sorted(chosen)
        return [int(places[number]) for number in chosen]

    def _nearness(self, record: Record) -> NDArray[np.float64]:
        """[M], higher is nearer."""
        if self.by == "bm25":
            scores = self._bm25.get_scores(_terms(record))
            return np.asarray(scores, dtype=np.float64)
        assert self.vectors
        return self._units @ _unit(self.vectors([record])[0] - self._centre)

    @cached_property
    def _bm25(self) -> Any:
        import bm25s

        index = bm25s.BM25()
        index.index([_terms(record) for record in self.pool], show_progress=False)
        return index

    @cached_property
    def _raw(self) -> NDArray[np.float64]:
        assert self.vectors
        return self.vectors(self.pool)

    @property
    def _centre(self) -> NDArray[np.float64]:
        # Mean states of decoders all point in nearly one direction; what tells texts apart is the rest.
        return np.asarray(self._raw.mean(0))

    @cached_property
    def _units(self) -> NDArray[np.float64]:
        return _unit(self._raw - self._centre)


def with_shots(record: Record, shots: Sequence[Record]) -> Record:
    """The record with the last exchange of each shot before its own turns (a system message stays first)."""
    system = [turn for turn in record.turns if turn.role == "system"]
    rest = [turn for turn in record.turns if turn.role != "system"]
    examples = [turn for shot in shots for turn in (shot.last_user, Turn("assistant", shot.answer))]
    return replace(record, turns=(*system, *examples, *rest))


def _said(record: Record) -> str:
    """What makes two rows duplicates: all that the user says, capitals, spacing and width aside."""
    return "\n".join(normalise(turn.content) for turn in record.turns if turn.role == "user")


def _terms(record: Record) -> list[str]:
    """Words; of writing without spaces characters and pairs of neighbours, which are its words more often than not."""
    words = tokens(record.last_user.content)
    single = [len(word) == 1 and any(low <= ord(word) <= high for low, high in (*HAN, *KANA)) for word in words]
    pairs = [words[n] + words[n + 1] for n in range(len(words) - 1) if single[n] and single[n + 1]]
    return words + pairs


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(size, 1e-12))


__all__ = ["BY", "ORDERS", "Picker", "pick_shots", "with_shots"]
