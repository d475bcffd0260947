"""What is compared: the pretrained model as it is, with solved examples in its prompt, and tuned.

Every arm answers the same rows through the same renderer with the same decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ..data.records import Record
from ..errors import InputError, Problem, did_you_mean
from ..inference.embedding import embedder
from ..inference.engine import BATCH_TOKENS, Generation, Sampling, finish, prompt_of
from ..inference.engine import Asked as Reads
from ..inference.loading import Loaded
from ..inference.told import told
from ..models.packing import packed
from ..models.reading import Reading, ReadingPlan
from ..models.sharing import turn_of
from ..prompts.fewshot import Picker, with_shots
from ..prompts.template import Rendered
from ..training.loss import row_losses

ARMS = {
    "base": "Base model",
    "reread": "Base model that reads again",
    "few_shot": "Few-shot base model",
    "tuned": "Tuned model",
}


@dataclass(frozen=True)
class Asked:
    """The rows of a suite as each arm is asked them, with how many examples each row shows. budget: tokens an answer
    may have."""

    rows: dict[str, list[Rendered]]
    shots: dict[str, list[int]]
    budget: int


@dataclass(frozen=True)
class Answered:
    """What one arm made of the rows of a suite: texts, how each answer ended, (nats, tokens) of the right answer."""

    texts: list[str]
    finish: list[str]
    losses: list[tuple[float, int]]
    shots: list[int]

    @property
    def ended(self) -> float:
        """Percent of answers that the model ended itself."""
        return 100.0 * sum(end == "stop" for end in self.finish) / len(self.finish)


def choose_arms(wanted: str, loaded: Loaded, pool: Sequence[Record]) -> tuple[list[str], list[str]]:
    """The arms that can be run, in the order of `ARMS`, and a note for each that can't.

    Raises InputError for an unknown arm, or when none is left.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise InputError(f"arms: unknown '{name}', {did_you_mean(name, ARMS)}")
    notes = []
    if "tuned" in names and loaded.method is None:
        names.remove("tuned")
    if "reread" in names and loaded.strokes == 1:
        names.remove("reread")
    if "few_shot" in names and not pool:
        names.remove("few_shot")
        notes.append("no examples are known for this model: it was measured without them")
    if "few_shot" in names and loaded.backbone.kind.chooses and not loaded.backbone.kind.masked:
        names.remove("few_shot")
        notes.append("a text with examples before it is another text to a classification head: measured without them")
    if not names:
        raise InputError(f"arms: nothing is left to measure (got '{wanted}')")
    return [name for name in ARMS if name in names], notes


class Bench:
    """Runs the arms of one loaded target."""

    def __init__(
        self, loaded: Loaded, pool: Sequence[Record], shots: int, seed: int, batch_rows: int, by: str = "random"
    ) -> None:
        self.loaded, self.batch_rows = loaded, batch_rows
        self.picker = Picker(pool, shots, by=by, seed=seed, vectors=embedder(loaded))

    def model_of(self, arm: str) -> AbstractContextManager[Any]:
        """The model of an arm, for as long as the block lasts."""
        loaded = self.loaded
        if arm == "tuned":
            return nullcontext(loaded.model)
        # Full fine-tuning is a model of its own; the pretrained one was loaded beside it.
        switchable = loaded.method is None or loaded.method.switchable
        base = loaded.untuned() if switchable else nullcontext(loaded.as_asked(loaded.backbone.model))
        return _rereading(base, loaded.strokes) if arm == "reread" else base

    def ask(
        self, records: Sequence[Record], arms: Sequence[str], max_new_tokens: int | None
    ) -> tuple[Asked, list[Problem]]:
        """Render the rows for each arm; the problems are rows that can't be rendered or don't fit into the model.

        max_new_tokens: None for the longest right answer and a quarter more.
        """
        plain: list[Rendered] = []
        problems: list[Problem] = []
        for record in records:
            try:
                plain.append(_answer_only(self.loaded.renderer.render(record)))
            except InputError as error:
                problems.append(record.origin.problem("prompt", str(error)))
        if problems:  # the longest answer is not known
            return Asked({}, {}, 0), problems
        longest = max(map(_answer_length, plain))
        budget = max_new_tokens or longest + max(8, longest // 4)
        again = bool({"reread", "tuned"} & {*arms})  # the other arms read once
        problems = [self._too_long(row, budget, again) for row in plain if not self._fits(row, budget, again)]
        if problems:
            return Asked({}, {}, budget), problems
        rows = {arm: plain for arm in arms}
        shots = {arm: [0] * len(plain) for arm in arms}
        if "few_shot" in arms:
            shown = [self._with_shots(record, row, budget) for record, row in zip(records, plain, strict=True)]
            rows["few_shot"], shots["few_shot"] = [row for row, _ in shown], [number for _, number in shown]
        return Asked(rows, shots, budget), []

    def answer(self, arm: str, asked: Asked, done: Callable[[int], None]) -> Answered:
        """Generate an answer to each row and measure the likelihood of the right one, both behind a prompt that is read
        once where the model can be asked so."""
        loaded, rows = self.loaded, asked.rows[arm]
        sampling = Sampling(max_new_tokens=asked.budget)
        right = [row.ids[row.prompt_end :] for row in rows]
        found: dict[int, Generation] = {}
        likely: dict[int, tuple[float, int]] | None = {}
        with self.model_of(arm) as model, packed(model):
            reading = Reads([prompt_of(row) for row in rows], model, loaded.backbone.pad_id)
            for numbers in reading.batches(self.batch_rows, BATCH_TOKENS):
                with turn_of(model):
                    reader = reading.start(numbers, asked.budget)
                    losses = told(reader, [right[number] for number in numbers]) if likely is not None else None
                if likely is None or losses is None:
                    likely = None
                else:
                    likely |= dict(zip(numbers, losses, strict=True))
                found |= dict(zip(numbers, finish(model, reader, loaded.stop_ids, sampling), strict=True))
                done(len(numbers))
            every = row_losses(model, rows, pad_id=loaded.backbone.pad_id, batch_tokens=4096) if likely is None else []
        losses = every if likely is None else [likely[number] for number in range(len(rows))]
        results = [found[number] for number in range(len(rows))]
        texts = [loaded.renderer.decode(result.ids) for result in results]
        return Answered(texts, [result.finish for result in results], losses, asked.shots[arm])

    def room(self, row: Rendered, arm: str) -> int:
        """Tokens that an answer of this arm to the row may have."""
        return self._room(row, arm in ("reread", "tuned"))

    def _with_shots(self, record: Record, plain: Rendered, budget: int) -> tuple[Rendered, int]:
        """The row with as many examples as the model can hold; `plain` is the row without any."""
        chosen = self.picker.pick(record)
        while chosen:
            row = _answer_only(self.loaded.renderer.render(with_shots(record, chosen)))
            if self._fits(row, budget, again=False):
                return row, len(chosen)
            chosen = chosen[1:]
        return plain, 0

    def _size(self, row: Rendered, again: bool) -> int:
        """Positions that a prompt takes. again: read by the plan, else once."""
        return self.loaded.positions(row) if again else row.prompt_end

    def _fits(self, row: Rendered, budget: int, again: bool) -> bool:
        """Whether the model can hold the prompt with a generated answer, and with the right one."""
        return max(budget, _answer_length(row)) <= self._room(row, again)

    def _room(self, row: Rendered, again: bool) -> int:
        """Tokens that an answer may have."""
        backbone = self.loaded.backbone
        return backbone.kind.room(backbone.max_positions, self._size(row, again))

    def _too_long(self, row: Rendered, budget: int, again: bool) -> Problem:
        limit, right, size = self.loaded.backbone.max_positions, _answer_length(row), self._size(row, again)
        times = f" (read {self.loaded.strokes} times)" if again and self.loaded.strokes > 1 else ""
        room = self._room(row, again)
        if right > room:
            reason = f"{size:,} tokens{times} and a right answer of {right:,} are more than this model can hold"
            advice = "lower --strokes, or leave the row out" if times else "leave the row out"
        else:
            reason = f"{size:,} tokens{times} and an answer of up to {budget:,} are more than this model can hold"
            advice = f"set --max-new-tokens to {room:,} or less"
        return row.origin.problem("length", f"{reason} ({limit:,}); {advice}")


@contextmanager
def _rereading(base: AbstractContextManager[Any], strokes: int) -> Iterator[Reading]:
    """The pretrained model reading each instruction several times."""
    with base as model:
        yield Reading(model, ReadingPlan(strokes=(strokes,))).eval()


def _answer_only(row: Rendered) -> Rendered:
    """The row with its last answer as the only target, whatever was trained on: losses of all arms cover the same."""
    flags = [False] * row.prompt_end + [True] * _answer_length(row)
    return replace(row, supervised=flags, skipped_turns=0)


def _answer_length(row: Rendered) -> int:
    return len(row.ids) - row.prompt_end
