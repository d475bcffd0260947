"""Which prompts begin alike, so that what they share is read once: a system prompt, an instruction, solved examples."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

LEAST = 16  # tokens that a longer beginning has to share beyond a shorter one
MOST = (
    8192  # tokens of all beginnings together, filled up: their keys and values are kept until the last prompt is read
)
Ids = Sequence[int]


def beginnings(prompts: Sequence[Ids], most: int = MOST) -> tuple[list[list[int]], list[int]]:
    """Beginnings that several prompts share, and for each prompt which of them is its own; none: ([], []).

    At most `most` tokens, filled up: where there would be more, beginnings have to differ by more to be told apart.
    """
    least, longest = LEAST, max(map(len, prompts), default=0)
    while True:
        heads, whose = _beginnings(prompts, least)
        if len(heads) < 2 or len(heads) * max(map(len, heads)) <= most:
            return heads, whose
        least = 2 * least if least < longest else 2 * longest


def _beginnings(prompts: Sequence[Ids], least: int) -> tuple[list[list[int]], list[int]]:
    """The same, with what has to be shared.

    Prompts are put in order, where those that begin alike are neighbours, and cut apart wherever the parts share at
    least `LEAST` tokens more than the whole does. Every prompt has at least one token behind its beginning.
    """
    order = sorted(range(len(prompts)), key=lambda number: list(prompts[number]))
    if len(order) < 2:
        return [], []
    ids = [list(prompts[number]) for number in order]
    alike = [len(commonprefix(pair)) for pair in zip(ids, ids[1:], strict=False)]
    heads: list[list[int]] = []
    whose = [0] * len(order)

    def cut(low: int, high: int) -> None:
        """Give the prompts from `low` to `high` (in order) their beginnings."""
        shared = min(min(alike[low : high - 1]), min(map(len, ids[low:high])) - 1)
        heads.append(ids[low][:shared])
        own, begin = len(heads) - 1, low
        whose[low:high] = [own] * (high - low)
        for place in range(low, high):
            if place == high - 1 or alike[place] < shared + least:
                part = place + 1
                if part - begin > 1 and (begin, part) != (low, high):
                    cut(begin, part)
                begin = part

    cut(0, len(order))
    used = sorted({*whose})
    if not heads[0] or not any(len(heads[head]) >= LEAST for head in used):
        return [], []
    found = [0] * len(order)
    for place, number in enumerate(order):
        found[number] = used.index(whose[place])
    return [heads[head] for head in used], found


__all__ = ["LEAST", "MOST", "beginnings"]
