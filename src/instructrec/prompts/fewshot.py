"""Few-shot prompting: solved examples put in front of the question, as earlier turns of the conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.records import Record, Turn


def pick_shots(record: Record, pool: Sequence[Record], shots: int, seed: int) -> list[Record]:
    """`shots` examples for a record, of its own task where the pool has any, else of all; never the row itself.

    Deterministic by seed and by the record, so that a row sees the same examples in whatever batch it is.
    """
    others = [other for other in pool if other.prompt_key != record.prompt_key]
    same = [other for other in others if record.task is not None and other.task == record.task]
    candidates = same or others
    generator = np.random.default_rng([seed, int(record.prompt_key, 16)])
    order = generator.permutation(len(candidates))[:shots]
    return [candidates[place] for place in order]


def with_shots(record: Record, shots: Sequence[Record]) -> Record:
    """The record with the last exchange of each shot before its own turns (a system message stays first)."""
    system = [turn for turn in record.turns if turn.role == "system"]
    rest = [turn for turn in record.turns if turn.role != "system"]
    examples = [turn for shot in shots for turn in (shot.last_user, Turn("assistant", shot.answer))]
    return replace(record, turns=(*system, *examples, *rest))
