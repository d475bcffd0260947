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
from ..models.reading import Reading, cut, repeat
from ..models.reading.attention import Decoding, Tags
from ..models.sharing import turn_of
from ..prompts.template import Rendered


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


def batches_of(lengths: Sequence[int], rows: int, tokens: int) -> list[list[int]]:
    """Prompt numbers grouped by like length: at most `rows` prompts and `tokens` prompt tokens (filled up) a batch."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batches: list[list[int]] = []
    for number in order:
        fits = batches and len(batches[-1]) < rows and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens
        if fits:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def generate(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    batch_rows: int = 32,
    batch_tokens: int = 8192,
    done: Callable[[int], None] = lambda count: None,
) -> list[Generation]:
    """An answer to each prompt, in the order given; batches are made of prompts of like length.

    model: a backbone of any kind, or a `Reading`, which reads each prompt's instruction as often as its `strokes` say.
    prompts: token ids, or `Rendered` ones, whose `ids[:prompt_end]` are asked and of which it is known where the
    instruction ends.  done: called with the number of finished prompts after each batch.
    """
    rendered = [_prompt(prompt) for prompt in prompts]
    lengths = [prompt_length(model, prompt) for prompt in rendered]
    results: list[Generation | None] = [None] * len(prompts)
    for numbers in batches_of(lengths, batch_rows, batch_tokens):
        columns = list(_steps(model, [rendered[n] for n in numbers], stop_ids, pad_id, sampling))
        for place, number in enumerate(numbers):
            ids = [column[place] for column in columns]
            end = next((at for at, token in enumerate(ids) if token in stop_ids), None)
            results[number] = Generation(ids[:end], "length" if end is None else "stop")
        done(len(numbers))
    return [result for result in results if result is not None]


def stream(model: Any, prompt: Prompt, *, stop_ids: Sequence[int], pad_id: int, sampling: Sampling) -> Iterator[int]:
    """Ids of one answer as they come, without the end token."""
    for column in _steps(model, [_prompt(prompt)], stop_ids, pad_id, sampling):
        if column[0] in stop_ids:
            return
        yield column[0]


def _prompt(prompt: Prompt) -> Rendered:
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
def start(model: Any, prompts: Sequence[Rendered], pad_id: int, room: int) -> Reader:
    """Prompts that were read, ready for answers of `room` tokens at most."""
    if not isinstance(model, Reading):
        return kind_of(model).start(model, [prompt.ids for prompt in prompts], pad_id)
    if model.plan.one_pass(model.strokes):  # repeated tokens say it all
        again = [repeat(prompt, model.strokes).ids for prompt in prompts]
        return kind_of(model).start(model.model, again, pad_id)
    return Planned(model, prompts, pad_id, room)


def _steps(
    model: Any, prompts: Sequence[Rendered], stop_ids: Sequence[int], pad_id: int, sampling: Sampling
) -> Iterator[list[int]]:
    """One token for every prompt at a time, until all have ended. A row that has ended repeats its stop id."""
    generator = torch.Generator().manual_seed(sampling.seed)
    stops = torch.tensor(sorted(stop_ids))
    with turn_of(model):
        reader = start(model, prompts, pad_id, sampling.max_new_tokens)
    logits = reader.logits
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for left in range(sampling.max_new_tokens, 0, -1):
        if reader.never:
            logits = logits.index_fill(1, torch.tensor(reader.never, device=logits.device), -torch.inf)
        token = choose(logits, sampling, generator)  # [B], on the processor
        token = torch.where(ended, stops[0], token)
        ended |= torch.isin(token, stops)
        yield token.tolist()
        if left == 1 or bool(ended.all()):
            return
        with turn_of(model), torch.inference_mode():
            logits = reader.proceed(token)


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
