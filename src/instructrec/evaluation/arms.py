"""What is compared: the pretrained model as it is, with solved examples in its prompt, and tuned.

Every arm answers the same rows through the same renderer with the same decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..data.records import Record
from ..errors import InputError, did_you_mean
from ..inference.engine import Sampling, generate
from ..inference.loading import Loaded
from ..prompts.fewshot import pick_shots, with_shots
from ..prompts.template import Rendered
from ..training.loss import row_losses

ARMS = {"base": "Base model", "few_shot": "Few-shot base model", "tuned": "Tuned model"}


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
    if "few_shot" in names and not pool:
        names.remove("few_shot")
        notes.append("no examples are known for this model: it was measured without them")
    if not names:
        raise InputError(f"arms: nothing is left to measure (got '{wanted}')")
    return [name for name in ARMS if name in names], notes


class Bench:
    """Runs the arms of one loaded target."""

    def __init__(self, loaded: Loaded, pool: Sequence[Record], shots: int, seed: int, batch_rows: int) -> None:
        self.loaded, self.pool, self.shots, self.seed, self.batch_rows = loaded, pool, shots, seed, batch_rows

    def model_of(self, arm: str) -> AbstractContextManager[Any]:
        """The model of an arm, for as long as the block lasts."""
        loaded = self.loaded
        if arm == "tuned":
            return nullcontext(loaded.model)
        if loaded.method is None or loaded.method.switchable:
            return loaded.untuned()
        # Full fine-tuning is a model of its own; the pretrained one was loaded beside it.
        return nullcontext(loaded.backbone.model)

    def answer(
        self, arm: str, records: Sequence[Record], max_new_tokens: int | None, done: Callable[[int], None]
    ) -> Answered:
        """Generate an answer to each record and measure the likelihood of the right one.

        max_new_tokens: None for the longest right answer and a quarter more.
        """
        loaded = self.loaded
        right = [loaded.renderer.render(record) for record in records]
        longest = max(len(row.ids) - row.prompt_end for row in right)
        budget = max_new_tokens or longest + max(8, longest // 4)
        rendered, counts = [], []
        for record, row in zip(records, right, strict=True):
            shown, count = self._with_shots(record, budget) if arm == "few_shot" else (row, 0)
            self._check(shown, budget)
            rendered.append(shown)
            counts.append(count)
        with self.model_of(arm) as model:
            results = generate(
                model,
                [row.ids[: row.prompt_end] for row in rendered],
                stop_ids=loaded.stop_ids,
                pad_id=loaded.backbone.pad_id,
                sampling=Sampling(max_new_tokens=budget),
                batch_rows=self.batch_rows,
                done=done,
            )
            losses = row_losses(model, rendered, pad_id=loaded.backbone.pad_id, batch_tokens=4096)
        texts = [loaded.renderer.decode(result.ids) for result in results]
        return Answered(texts, [result.finish for result in results], losses, counts)

    def _with_shots(self, record: Record, budget: int) -> tuple[Rendered, int]:
        """The row with as many examples as the model can hold."""
        chosen = pick_shots(record, self.pool, self.shots, self.seed)
        while True:
            row = self.loaded.renderer.render(with_shots(record, chosen))
            last_only = [False] * row.prompt_end + row.supervised[row.prompt_end :]  # examples are no targets
            row = Rendered(row.ids, last_only, row.instruction_end, row.prompt_end, 0, row.origin)
            if not chosen or row.prompt_end + budget <= self.loaded.backbone.max_positions:
                return row, len(chosen)
            chosen = chosen[1:]

    def _check(self, row: Rendered, budget: int) -> None:
        limit = self.loaded.backbone.max_positions
        if row.prompt_end + budget > limit:
            raise InputError(
                f"{row.origin}: length: {row.prompt_end:,} tokens and an answer of up to {budget:,} "
                f"are more than this model can hold ({limit:,})"
            )
