"""Prompts in, tokens out. Knows no HTTP, no files and no templates.

B prompts of a batch, R rows of a branch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.kinds import Reader, kind_of
from ..models.kinds.decoder import Cached, Heads
from ..models.packing import packed
from ..models.reading import Reading, cut, repeat
from ..models.reading.attention import Decoding, Tags
from ..models.sharing import turn_of
from ..prompts.template import Rendered
from .shared import beginnings


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. top_p: smallest set of tokens with so much probability. seed: of the random draws."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """ids without the end token; finish is 'stop' (the model ended its answer) or 'length'."""

    ids: list[int]
    finish: str


Prompt = Rendered | Sequence[int]
BATCH_TOKENS = 8192  # tokens of the prompts of a batch, filled up
KEPT = 0.75  # share of a batch that goes on: with less the ended rows are dropped, which copies the others' memory


def batches_of(lengths: Sequence[int], rows: int, tokens: int, keys: Sequence[int] | None = None) -> list[list[int]]:
    """Prompt numbers grouped by like length: at most `rows` prompts and `tokens` prompt tokens (filled up) a batch.

    keys: what prompts are grouped by where it is not their length.
    """
    order = sorted(range(len(lengths)), key=(keys or lengths).__getitem__, reverse=True)
    batches: list[list[int]] = []
    longest = 0
    for number in order:
        longest = max(longest, lengths[number])
        if batches and len(batches[-1]) < rows and longest * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
            longest = lengths[number]
    return batches


def generate(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    batch_rows: int = 32,
    batch_tokens: int = BATCH_TOKENS,
    done: Callable[[int], None] = lambda count: None,
) -> list[Generation]:
    """An answer to each prompt, in the order given; batches are made of prompts of like length.

    model: a backbone of any kind, or a `Reading`, which reads each prompt's instruction as often as its `strokes` say.
    prompts: token ids, or `Rendered` ones, whose `ids[:prompt_end]` are asked and of which it is known where the
    instruction ends.  done: called with the number of finished prompts after each batch.
    """
    results: list[Generation | None] = [None] * len(prompts)
    with packed(model):
        asked = Asked([prompt_of(prompt) for prompt in prompts], model, pad_id)
        for numbers in asked.batches(batch_rows, batch_tokens):
            with turn_of(model):
                reader = asked.start(numbers, sampling.max_new_tokens)
            for number, answer in zip(numbers, finish(model, reader, stop_ids, sampling), strict=True):
                results[number] = answer
            done(len(numbers))
    return [result for result in results if result is not None]


def finish(model: Any, reader: Reader, stop_ids: Sequence[int], sampling: Sampling) -> list[Generation]:
    """An answer to each prompt of a reader of `model`."""
    columns = list(_steps(model, reader, stop_ids, sampling))
    answers = []
    for row in zip(*columns, strict=True):
        end = next((at for at, token in enumerate(row) if token in stop_ids), None)
        answers.append(Generation(list(row[:end]), "length" if end is None else "stop"))
    return answers


def stream(model: Any, prompt: Prompt, *, stop_ids: Sequence[int], pad_id: int, sampling: Sampling) -> Iterator[int]:
    """Ids of one answer as they come, without the end token."""
    with packed(model):
        with turn_of(model):
            reader = start(model, [prompt_of(prompt)], pad_id, sampling.max_new_tokens)
        for column in _steps(model, reader, stop_ids, sampling):
            if column[0] in stop_ids:
                return
            yield column[0]


def prompt_of(prompt: Prompt) -> Rendered:
    """A row's prompt without its answer; ids alone are all instruction."""
    if not isinstance(prompt, Rendered):
        return Rendered(list(prompt), [False] * len(prompt), len(prompt), len(prompt))
    end = prompt.prompt_end
    return replace(prompt, ids=prompt.ids[:end], supervised=[False] * end)


def prompt_length(model: Any, prompt: Rendered) -> int:
    """Tokens that go through the backbone for a prompt."""
    if not isinstance(model, Reading):
        return len(prompt.ids)
    end = cut(prompt)
    return model.plan.tokens(end, len(prompt.ids) - end, model.strokes, deep=False)


class Planned:
    """Prompts read stroke by stroke, and the memory that this leaves."""

    never: Sequence[int] = ()

    def __init__(self, model: Reading, prompts: Sequence[Rendered], pad_id: int, room: int) -> None:
        self.model = model
        self.state, self.logits = model.prefill(prompts, pad_id, room)

    def proceed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after tokens [B]."""
        return self.model.proceed(self.state, tokens)

    def branch(self, rows: torch.Tensor) -> Planned:
        """A reader that goes on from these rows [R]."""
        other, state = copy(self), self.state
        layers = [(keys[rows], values[rows]) for keys, values in state.layers]
        parts = (state.tags.position, state.tags.stroke, state.tags.answer, state.tags.valid)
        other.state = Decoding(state.plan, layers, Tags(*(part[rows] for part in parts)), state.length)
        return other


@torch.inference_mode()
def start(model: Any, prompts: Sequence[Rendered], pad_id: int, room: int, heads: Heads | None = None) -> Reader:
    """Prompts that were read, ready for answers of `room` tokens at most. heads: beginnings that were read already."""
    if (ids := _fed(model, prompts)) is None:
        return Planned(model, prompts, pad_id, room)
    decoder = model.model if isinstance(model, Reading) else model
    if heads is None:
        return kind_of(model).start(decoder, ids, pad_id)
    return Cached(decoder, ids, pad_id, heads)


def _fed(model: Any, prompts: Sequence[Rendered]) -> list[list[int]] | None:
    """What goes through the backbone for each prompt; None where a plan reads it in several passes."""
    if not isinstance(model, Reading):
        return [prompt.ids for prompt in prompts]
    if not model.plan.one_pass(model.strokes):
        return None
    return [repeat(prompt, model.strokes).ids for prompt in prompts]  # repeated tokens say it all


class Asked:
    """Prompts that are to be read in batches, what several of them begin with being read once.

    Equal to reading each by itself: under a causal mask what begins a prompt does not depend on what follows.
    """

    def __init__(self, prompts: Sequence[Rendered], model: Any, pad_id: int) -> None:
        self.prompts, self.model, self.pad_id = prompts, model, pad_id
        self.lengths = [prompt_length(model, prompt) for prompt in prompts]
        self.heads: Heads | None = None
        if kind_of(model).causal and (ids := _fed(model, prompts)) is not None:
            with turn_of(model), torch.inference_mode():
                self.heads = _heads(model.model if isinstance(model, Reading) else model, ids, pad_id)

    def batches(self, rows: int, tokens: int) -> list[list[int]]:
        """Numbers of prompts that are read together, as `batches_of`."""
        if self.heads is None:
            return batches_of(self.lengths, rows, tokens)
        known = [self.heads.lengths[head] for head in self.heads.whose]
        new = [length - count for length, count in zip(self.lengths, known, strict=True)]
        return batches_of(self.lengths, rows, tokens, new)

    def start(self, numbers: Sequence[int], room: int) -> Reader:
        """These prompts, read."""
        heads = self.heads.of(numbers) if self.heads else None
        return start(self.model, [self.prompts[number] for number in numbers], self.pad_id, room, heads)


def _heads(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> Heads | None:
    """What several prompts begin with, read; which again may begin alike. None where there is nothing, or where a
    window has cut off what was read first."""
    found, whose = beginnings(prompts)
    if not found:
        return None
    above = _heads(model, found, pad_id) if len(found) > 1 else None
    reader = Cached(model, found, pad_id, above)
    return Heads(reader, tuple(map(len, found)), tuple(whose)) if reader.whole else None


def _steps(model: Any, reader: Reader, stop_ids: Sequence[int], sampling: Sampling) -> Iterator[list[int]]:
    """One token for every prompt at a time, until all have ended. A row that has ended repeats its stop id."""
    generator = torch.Generator().manual_seed(sampling.seed)
    stops = torch.tensor(sorted(stop_ids))
    logits = reader.logits
    ended = torch.zeros(len(logits), dtype=torch.bool)
    left = torch.arange(len(logits))  # numbers of the rows that are still computed
    for budget in range(sampling.max_new_tokens, 0, -1):
        if reader.never:
            logits = logits.index_fill(1, torch.tensor(reader.never, device=logits.device), -torch.inf)
        if len(left) < len(ended):
            # Draws go by the place of a row: rows that are gone keep theirs, or a seed would mean something else.
            whole = logits.new_zeros(len(ended), logits.shape[1])
            logits = whole.index_copy_(0, left.to(logits.device), logits)
        token = choose(logits, sampling, generator)  # [B], on the processor
        token = torch.where(ended, stops[0], token)
        ended |= torch.isin(token, stops)
        yield token.tolist()
        if budget == 1 or bool(ended.all()):
            return
        with turn_of(model), torch.inference_mode():
            going = (~ended[left]).nonzero()[:, 0]
            if len(going) <= KEPT * len(left):
                left = left[going]
                reader = reader.branch(going.to(logits.device))
            logits = reader.proceed(token[left])


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Next token of each row from logits [B, V]: the largest, or a draw from the nucleus (arXiv 1904.09751)."""
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    probabilities = torch.softmax(logits.float().cpu() / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that reaches top_p still belongs to it
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
