"""Prompts in, tokens out. Knows no HTTP, no files and no templates.

B prompts of a batch, T tokens of its longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


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


def batches_of(prompts: Sequence[Sequence[int]], rows: int, tokens: int) -> list[list[int]]:
    """Prompt numbers grouped by like length: at most `rows` prompts and `tokens` prompt tokens (filled up) a batch."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
    batches: list[list[int]] = []
    for number in order:
        fits = batches and len(batches[-1]) < rows and len(prompts[batches[-1][0]]) * (len(batches[-1]) + 1) <= tokens
        if fits:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    batch_rows: int = 32,
    batch_tokens: int = 8192,
    done: Callable[[int], None] = lambda count: None,
) -> list[Generation]:
    """An answer to each prompt, in the order given; batches are made of prompts of like length.

    done: called with the number of finished prompts after each batch.
    """
    results: list[Generation | None] = [None] * len(prompts)
    for numbers in batches_of(prompts, batch_rows, batch_tokens):
        columns = list(_steps(model, [prompts[n] for n in numbers], stop_ids, pad_id, sampling))
        for place, number in enumerate(numbers):
            ids = [column[place] for column in columns]
            end = next((at for at, token in enumerate(ids) if token in stop_ids), None)
            results[number] = Generation(ids[:end], "length" if end is None else "stop")
        done(len(numbers))
    return [result for result in results if result is not None]


def stream(
    model: Any, prompt: Sequence[int], *, stop_ids: Sequence[int], pad_id: int, sampling: Sampling
) -> Iterator[int]:
    """Ids of one answer as they come, without the end token."""
    for column in _steps(model, [prompt], stop_ids, pad_id, sampling):
        if column[0] in stop_ids:
            return
        yield column[0]


@torch.inference_mode()
def _prefill(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Cache, next-token logits [B, V] and mask [B, T] of prompts filled up on the left."""
    device = next(model.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(prompt)
        mask[place, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    return out.past_key_values, out.logits[:, -1], mask


def _steps(
    model: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], pad_id: int, sampling: Sampling
) -> Iterator[list[int]]:
    """One token for every prompt at a time, until all have ended. A row that has ended repeats its stop id."""
    generator = torch.Generator().manual_seed(sampling.seed)
    stops = torch.tensor(sorted(stop_ids))
    cache, logits, mask = _prefill(model, prompts, pad_id)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    positions = mask.sum(1, keepdim=True)
    for left in range(sampling.max_new_tokens, 0, -1):
        token = choose(logits, sampling, generator)  # [B], on the processor
        token = torch.where(ended, stops[0], token)
        ended |= torch.isin(token, stops)
        yield token.tolist()
        if left == 1 or bool(ended.all()):
            return
        with torch.inference_mode():
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            out = model(
                input_ids=token.to(mask.device)[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            cache, logits, positions = out.past_key_values, out.logits[:, -1], positions + 1


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
