"""Decoders: one causal stack that reads the prompt and goes on with the answer.

B rows, T tokens of the longest row or prompt, N supervised positions, R rows of a branch, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ...prompts.template import Rendered
from . import Kind
from .batch import Batch, as_mask, fill


class Decoder(Kind):
    """GPT-like models."""

    name = "decoder"
    auto = "AutoModelForCausalLM"
    task = "CAUSAL_LM"
    causal = True
    one_answer = False

    def owns(self, config: Any) -> bool:
        """All that no other kind owns."""
        return True

    def check(self, config: Any, name: str) -> None:
        """Raises InputError for what is no decoder, or one without a cache."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

        # BERT and its kin have a causal class too, but read to both sides unless their configuration says otherwise.
        two_sided = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or two_sided:
            raise InputError(
                f"model: '{name}' is no decoder ({config.model_type}); this version tunes decoders and encoder-decoders"
            )
        # Answers are made with a cache of keys and values; a recurrent model keeps another state.
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if "past_key_values" not in inspect.signature(model_class.forward).parameters:
            raise InputError(
                f"model: '{name}' keeps no key/value cache ({config.model_type}); this version tunes decoders with one"
            )

    def collate(self, model: Any, rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch:
        """Prompt and answer in one sequence."""
        return collate(rows, pad_id, numbers)

    def start(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> Cached:
        """Prompts filled up on the left."""
        return Cached(model, prompts, pad_id)


def collate(rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch:
    """Rows of unequal length as one batch. A row's first token is never a target: nothing comes before it."""
    ids, mask = fill([row.ids for row in rows], pad_id)
    supervised = np.zeros(ids.shape, dtype=bool)
    for number, row in enumerate(rows):
        supervised[number, : len(row.ids)] = row.supervised
    supervised[:, 0] = False
    positions = np.flatnonzero(np.roll(supervised, -1, axis=1))
    return Batch(
        torch.from_numpy(ids),
        as_mask(mask),
        torch.from_numpy(positions),
        torch.from_numpy(ids.reshape(-1)[positions + 1]),
        torch.from_numpy(positions // ids.shape[1]),
        tuple(numbers),
    )


def selected(cache: Any, rows: torch.Tensor) -> Any:
    """A copy of a cache of keys and values with these of its rows, [R]."""
    cache = copy(cache)
    # Selecting puts new tensors into a layer and leaves the old ones alone, so the layers' objects are copied only.
    cache.layers = [copy(layer) for layer in cache.layers]
    cache.batch_select_indices(rows)
    return cache


class Cached:
    """Prompts filled up on the left, read in one go, and the backbone's own cache after that."""

    never: Sequence[int] = ()

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        device = next(model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        self.model, self.mask, self.cache = model, mask.to(device), None
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.logits = self._call(ids.to(device), positions.to(device), logits_to_keep=1)
        self.positions = self.mask.sum(1, keepdim=True)

    def proceed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after tokens [B]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        logits = self._call(tokens.to(self.mask.device)[:, None], self.positions)
        self.positions = self.positions + 1
        return logits

    def branch(self, rows: torch.Tensor) -> Cached:
        """A reader that goes on from these rows [R]."""
        other = copy(self)
        other.mask, other.positions, other.cache = self.mask[rows], self.positions[rows], selected(self.cache, rows)
        return other

    def _call(self, ids: torch.Tensor, positions: torch.Tensor, **more: Any) -> torch.Tensor:
        given = {"attention_mask": self.mask, "position_ids": positions, "past_key_values": self.cache, **more}
        out = self.model(input_ids=ids, use_cache=True, **given)
        self.cache = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits
