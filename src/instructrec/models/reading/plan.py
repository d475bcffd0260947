"""The reading plan of the RRTransformer: how often, with which weights and with what memory an instruction is read.

    stroke t = 1..R :  KV_t = f(x, positions S+(t-1)N .. S+tN-1, sees M_{t-1} and itself; weights theta + phi_t)
                       M_t  = M_{t-1} (+) KV_t,  M_0 = S learned slots at positions 0..S-1, or nothing
    answer          :  p(a_j) = f(a, positions S+RN .., sees M_R and itself causally; weights theta + phi)

x: the N tokens before the last assistant header.  a: the header and the answer.  theta: the backbone, phi: what is
tuned.  docs/rrtransformer.md tells the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from ...errors import InputError, did_you_mean

SINK = 4  # first tokens of stroke 1 that `sink+last` keeps: models park attention there (arXiv 2309.17453)
MOST_STROKES = 8

CHOICES = {
    "prior": ("tuned", "frozen"),
    "stroke_adapters": ("shared", "separate"),
    "memory": ("all", "sink+last"),
    "direction": ("causal", "bidirectional"),
    "mix": ("concat", "gated"),
}


@dataclass(frozen=True, kw_only=True)
class ReadingPlan:
    """How an instruction is read; the default is what every decoder does: once.

    strokes: R, or several of which one is drawn for each training step.  prior: weights of stroke 1.
    stroke_adapters: one phi for all strokes, or one each.  deep: in training, answer after every stroke.
    consistency: weight in the loss of how far neighbours of these answers are apart.  slots: S.
    memory: what is seen of earlier strokes.  direction: attention inside strokes from the second on.
    mix: how a stroke joins the memory.  Raises InputError for a plan that has no meaning.
    """

    strokes: tuple[int, ...] = (1,)
    prior: str = "tuned"
    stroke_adapters: str = "shared"
    deep: bool = False
    consistency: float = 0.0
    slots: int = 0
    memory: str = "all"
    direction: str = "causal"
    mix: str = "concat"

    def __post_init__(self) -> None:
        if not self.strokes or any(not 1 <= stroke <= MOST_STROKES for stroke in self.strokes):
            raise InputError(f"strokes: got {_listed(self.strokes)}, want numbers from 1 to {MOST_STROKES}")
        if len(set(self.strokes)) != len(self.strokes):
            raise InputError(f"strokes: got {_listed(self.strokes)}, want each number once")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: got '{getattr(self, name)}', {did_you_mean(getattr(self, name), allowed)}")
        if not 0 <= self.consistency < float("inf"):
            raise InputError(f"consistency: got {self.consistency:g}, want 0 or more")
        if self.consistency and not self.deep:
            raise InputError(f"consistency: {self.consistency:g} compares the answers after each reading (want deep)")
        if self.slots < 0:
            raise InputError(f"slots: got {self.slots}, want 0 or more")
        if self.mix == "gated" and self.most > 2:
            raise InputError(f"strokes: mix=gated averages two readings (got {_listed(self.strokes)}, want 2)")
        if self.most == 1:
            for name in ("prior", "stroke_adapters", "deep", "memory", "direction", "mix"):
                if getattr(self, name) != _DEFAULTS[name]:
                    raise InputError(
                        f"{name}: {getattr(self, name)} needs a second reading (want strokes of 2 or more)"
                    )
        differ = (self.direction, self.prior, self.stroke_adapters) != ("causal", "tuned", "shared")
        if self.mix == "gated" and not differ:  # the gates would never have a gradient
            wanted = "want direction=bidirectional, prior=frozen or stroke_adapters=separate"
            raise InputError(f"mix: gated averages two equal readings ({wanted})")
        if self.stroke_adapters == "separate":
            if self.prior == "frozen" and self.most == 2:
                raise InputError("stroke_adapters: with prior=frozen and two strokes only one of them is tuned")
            if len(self.strokes) > 1:
                raise InputError(f"strokes: separate adapters need one number (got {_listed(self.strokes)})")

    @property
    def most(self) -> int:
        """The largest number of strokes."""
        return max(self.strokes)

    @property
    def plain(self) -> bool:
        """True for what every decoder does anyway."""
        return self.most == 1 and not self.slots

    @property
    def sequence(self) -> bool:
        """True when reading R times is the same as one causal pass over [x; ..; x; a]: it can be exported."""
        return (
            self.prior == "tuned"
            and self.stroke_adapters == "shared"
            and self.memory == "all"
            and self.direction == "causal"
            and self.mix == "concat"
            and not self.slots
        )

    def one_pass(self, strokes: int) -> bool:
        """True when this is so for `strokes` readings: a single one is always what every decoder does."""
        return self.sequence or (strokes == 1 and not self.slots)

    def as_rows(self, strokes: int, deep: bool | None = None) -> bool:
        """Whether rows are read as rows, their instructions written out `strokes` times: one pass and one answer."""
        return self.one_pass(strokes) and (strokes == 1 or not (self.deep if deep is None else deep))

    def weights(self, stroke: int, strokes: int) -> str:
        """Whose weights stroke `stroke` of `strokes` reads with: '' the tuned ones, 'off' the backbone's alone, or the
        name of an adapter. A single reading is always the tuned one."""
        if strokes > 1 and stroke == 1 and self.prior == "frozen":
            return "off"
        return f"stroke_{stroke}" if self.stroke_adapters == "separate" and stroke < strokes else ""

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters besides the one that the last stroke and the answer use."""
        names = [self.weights(stroke, self.most) for stroke in range(1, self.most + 1)]
        return [name for name in names if name not in ("", "off")]

    def check_dial(self, strokes: int) -> None:
        """Raises InputError when an instruction can't be read `strokes` times under this plan."""
        if not 1 <= strokes <= MOST_STROKES:
            raise InputError(f"strokes: got {strokes}, want a number from 1 to {MOST_STROKES}")
        if self.mix == "gated" and strokes > 2:
            raise InputError(f"strokes: mix=gated averages two readings (got {strokes}, want 1 or 2)")
        if self.stroke_adapters == "separate" and strokes != self.most:
            raise InputError(f"strokes: each stroke has an adapter of its own (got {strokes}, want {self.most})")

    def draw(self, step: int, steps: int, seed: int) -> int:
        """Strokes of a training step: drawn evenly from those open so far. The smallest is open from the start, the
        others follow one by one over the first half of training (a curriculum as in arXiv 2511.07384)."""
        ordered = sorted(self.strokes)
        stage = int(2 * len(ordered) * step / max(1, steps))
        opened = ordered[: min(len(ordered), 1 + stage)]
        return int(opened[np.random.default_rng([seed, step, 77]).integers(len(opened))])

    def tokens(self, instruction: Any, answer: Any, strokes: int, deep: bool | None = None) -> Any:
        """Tokens that go through the backbone for a row of `instruction` and `answer` tokens; also of arrays."""
        answers = strokes if (self.deep if deep is None else deep) else 1
        return strokes * instruction + answers * answer

    def last_position(self, instruction: Any, answer: Any, strokes: int) -> Any:
        """Positions that a row takes; also of arrays."""
        return self.slots + (1 if self.mix == "gated" else strokes) * instruction + answer

    def to_json(self) -> dict[str, Any]:
        """What `prompt.json` keeps."""
        return asdict(self) | {"strokes": list(self.strokes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> ReadingPlan:
        """The reverse. Raises InputError for a plan of another version."""
        known = {one.name for one in fields(cls)}
        for name in sorted(value.keys() - known):
            raise InputError(f"{where}: reading: unknown setting '{name}', {did_you_mean(name, known)}")
        strokes = value.get("strokes", [1])
        try:
            return replace(cls(), **{**value, "strokes": (strokes,) if isinstance(strokes, int) else tuple(strokes)})
        except (TypeError, InputError) as error:
            raise InputError(f"{where}: reading: {error}") from error

    def describe(self) -> str:
        """One phrase for terminals and reports."""
        if self.plain:
            return "once"
        parts = ["once" if self.most == 1 else f"{_listed(self.strokes)} times"]
        for name in ("prior", "stroke_adapters", "memory", "direction", "mix"):
            if getattr(self, name) != _DEFAULTS[name]:
                parts.append(f"{name}={getattr(self, name)}")
        parts += ["deep"] if self.deep else []
        parts += [f"consistency={self.consistency:g}"] if self.consistency else []
        parts += [f"{self.slots} slots"] if self.slots else []
        return ", ".join(parts)


_DEFAULTS = {one.name: one.default for one in fields(ReadingPlan)}


def parse_strokes(text: str | int) -> tuple[int, ...]:
    """2, or several: 1,2,3. Raises ValueError otherwise."""
    return tuple(int(part) for part in str(text).split(","))


def _listed(strokes: Sequence[int]) -> str:
    return ",".join(map(str, strokes)) or "nothing"
