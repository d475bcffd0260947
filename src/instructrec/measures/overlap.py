"""Near duplicates between test rows and training rows, by MinHash (Broder 1997) over what their texts share.

N training rows, M test rows, P permutations.

Compared is a row's body: its input where it has one, else its instruction, as the set of its words and pairs of
neighbouring words (Chinese and Japanese: characters). Two rows are near duplicates when the estimated Jaccard
similarity of their bodies is 0.8 or more and, where they have inputs, they ask the same of them: they name the same
task, or their instructions are alike by half. The standard error of an estimate is 0.05 at 0.8 (P = 64).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .text import tokens

PERMUTATIONS, SCHEME = 64, "affine32"
NEAR, ALIKE = 0.8, 0.5
Signatures = NDArray[np.uint32]  # [N, P]


@dataclass(frozen=True)
class Texts:
    """What is compared of one row."""

    instruction: str
    input: str
    task: str | None

    @property
    def body(self) -> str:
        """The text by which rows are near each other."""
        return self.input or self.instruction


@dataclass(frozen=True)
class Index:
    """Training rows to look test rows up in.

    bodies [N, P].  wording: of each row, a number into `wordings` [W, P]; -1 for a row without input.  task: of each
    row, a number into `tasks`; -1 for none.
    """

    bodies: Signatures
    wording: NDArray[np.int32]
    wordings: Signatures
    task: NDArray[np.int32]
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Texts]) -> Index:
        """Of training rows, which are gone through once."""
        numbers: dict[str, int] = {}
        tasks: dict[str, int] = {}
        wording, task, bodies = [], [], []
        for row in rows:
            bodies.append(row.body)
            wording.append(numbers.setdefault(row.instruction, len(numbers)) if row.input else -1)
            task.append(tasks.setdefault(row.task, len(tasks)) if row.task else -1)
        return cls(
            signatures(bodies),
            np.array(wording, dtype=np.int32),
            signatures(list(numbers)),
            np.array(task, dtype=np.int32),
            tuple(tasks),
        )

    def __len__(self) -> int:
        return len(self.bodies)

    def near(self, rows: Sequence[Texts]) -> list[int]:
        """For each test row the number of the training row that is nearest to it, -1 where none is near."""
        if not len(self) or not rows:
            return [-1] * len(rows)
        lsh, same = self._lookup
        bodies, wordings = signatures([row.body for row in rows]), signatures([row.instruction for row in rows])
        places = {name: number for number, name in enumerate(self.tasks)}
        found = []
        for row, body, wording in zip(rows, bodies, wordings, strict=True):
            candidates = [
                number for head in sorted(lsh.query(_minhash(body))) for number in same[self.bodies[head].tobytes()]
            ]
            best, nearest = NEAR, -1
            for number in candidates:
                likeness = float((self.bodies[number] == body).mean())
                better = likeness > best or (likeness == best and nearest < 0)
                if better and self._asks_alike(number, row, wording, places.get(row.task or "", -2)):
                    best, nearest = likeness, number
            found.append(nearest)
        return found

    @cached_property
    def _lookup(self) -> tuple[Any, dict[bytes, list[int]]]:
        """What finds likely neighbours by number, and the rows that share a signature; the first stands for them."""
        from datasketch import MinHashLSH

        # To miss a near row is worse than to look at one more: weights of false positives and negatives.
        lsh = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
        same: dict[bytes, list[int]] = {}
        for number, signature in enumerate(self.bodies):
            alike = same.setdefault(signature.tobytes(), [])
            if not alike:
                lsh.insert(number, _minhash(signature))
            alike.append(number)
        return lsh, same

    def _asks_alike(self, number: int, row: Texts, wording: NDArray[np.uint32], task: int) -> bool:
        own = int(self.wording[number])
        if (own < 0) != (not row.input):  # an input is not looked for inside an instruction
            return False
        if not row.input or task == int(self.task[number]):
            return True
        return float((self.wordings[own] == wording).mean()) >= ALIKE


def signatures(texts: Sequence[str]) -> Signatures:
    """[number of texts, P]."""
    from datasketch import MinHash

    found = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    if texts:
        sets = [shingles(text) for text in texts]
        for number, one in enumerate(MinHash.generator(sets, num_perm=PERMUTATIONS, seed=1, scheme=SCHEME)):
            found[number] = one.hashvalues
    return found


def shingles(text: str) -> list[bytes]:
    """Words and pairs of neighbouring words; single characters of Chinese and Japanese."""
    words = tokens(text)
    pairs = (f"{first} {second}" for first, second in zip(words, words[1:], strict=False))
    return [part.encode("utf-8", "surrogatepass") for part in dict.fromkeys([*words, *pairs])]


def _minhash(signature: NDArray[np.uint32]) -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME, hashvalues=signature)
