"""Decoders: one causal stack that reads the prompt and goes on with the answer.

B rows, T tokens of the longest row or prompt, N supervised positions, R rows of a branch, V vocabulary, H beginnings
that prompts share, G key/value heads, E width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...errors import InputError
from ...prompts.template import Rendered
from ..shared_prefix import SharedPrefix, common, lay
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
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise InputError(
                f"model: '{name}' is no decoder ({config.model_type}); this version tunes decoders, encoder-decoders "
                "and masked encoders"
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

    def start(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int, heads: Heads | None = None) -> Cached:
        """Prompts filled up on the left."""
        return Cached(model, prompts, pad_id, heads)


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


def sharing(rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch | None:
    """As `collate`, with what rows have in common at their beginnings in the batch once; None where it is not worth
    it."""
    ids = [row.ids for row in rows]
    length, whose = common(ids)
    if not length:
        return None
    laid = lay(ids, [row.supervised for row in rows], length, whose, pad_id)
    tokens, places, positions, targets, owners = (torch.from_numpy(part) for part in laid)
    shared = SharedPrefix(int(whose.max()) + 1, length, torch.from_numpy(whose))
    return Batch(
        tokens[None], None, positions, targets, owners, tuple(numbers), places=places[None], shared=shared
    )  # fmt: skip


def selected(cache: Any, rows: torch.Tensor) -> Any:
    """A copy of a cache of keys and values with these of its rows, [R]."""
    cache = copy(cache)
    # Selecting puts new tensors into a layer and leaves the old ones alone, so the layers' objects are copied only.
    cache.layers = [copy(layer) for layer in cache.layers]
    cache.batch_select_indices(rows)
    return cache


@dataclass(frozen=True)
class Heads:
    """Beginnings that prompts share, read once.

    reader: of the H beginnings.  lengths [H]: their tokens.  whose [B]: the beginning of each prompt.
    """

    reader: Cached
    lengths: tuple[int, ...]
    whose: tuple[int, ...]

    def of(self, numbers: Sequence[int]) -> Heads:
        """The same for these of the prompts."""
        return replace(self, whose=tuple(self.whose[number] for number in numbers))

    def new(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens of a prompt that are yet to be read, most over the prompts."""
        return max(len(ids) - self.lengths[head] for ids, head in zip(prompts, self.whose, strict=True))


class _Roomy(DynamicLayer):
    """Keys and values with room behind them, so that a token more does not copy all that are there."""

    SPARE = 32

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, True
        self.dtype, self.device = layer.dtype, layer.device
        self._space: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with those of the new tokens, [B, G, T, E] each."""
        assert self.keys is not None and self.values is not None
        old = self.keys.shape[2]
        total = old + key_states.shape[2]
        # Whoever selects rows puts tensors of its own in place of ours: they are not in our space any more.
        ours = self._space and self._space[0].data_ptr() == self.keys.data_ptr()
        if not ours or total > self._space[0].shape[2]:
            self._space = [_widened(part, total + self.SPARE) for part in (self.keys, self.values)]
        for space, new in zip(self._space, (key_states, value_states), strict=True):
            space[:, :, old:total] = new
        self.keys, self.values = (space[:, :, :total] for space in self._space)
        return self.keys, self.values


def _widened(part: torch.Tensor, size: int) -> torch.Tensor:
    space = part.new_empty(*part.shape[:2], size, part.shape[3])
    space[:, :, : part.shape[2]] = part
    return space


class Cached:
    """Prompts filled up on the left, read in one go, and the backbone's own cache after that.

    Where prompts begin as `heads` say, every row has its last N tokens read, N being the most that any row has behind
    its beginning; what comes before is copied from the beginning. So keys stand where they would stand without `heads`,
    padding on the left and no gap, which windows of a sliding layer rely on.
    """

    never: Sequence[int] = ()

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int, heads: Heads | None = None) -> None:
        device = next(model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        new = min(width, heads.new(prompts)) if heads else width
        ids = torch.full((len(prompts), new), pad_id, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for place, prompt in enumerate(prompts):
            last = list(prompt)[-new:]
            ids[place, new - len(last) :] = torch.tensor(last)
            mask[place, width - len(prompt) :] = 1
        self.model, self.mask = model, mask.to(device)
        self.cache: Any = None
        if heads and new < width:
            self.cache = _behind(heads, [max(0, len(prompt) - new) for prompt in prompts], width - new)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, width - new :]
        self.logits = self._call(ids.to(device), positions.to(device), logits_to_keep=1)
        self.positions = self.mask.sum(1, keepdim=True)
        for number, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer and layer.is_initialized:
                self.cache.layers[number] = _Roomy(layer)

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

    @property
    def layers(self) -> Sequence[Any]:
        """The cache of each layer; none where the library keeps something else."""
        found: Sequence[Any] = getattr(self.cache, "layers", ())
        return found

    @property
    def whole(self) -> bool:
        """Whether all that was read is still there as keys and values: nothing cut by a window, no other state."""
        layers = self.layers
        kinds = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, _Roomy) for layer in layers)
        return bool(layers) and kinds and all(_tokens(layer) == self.mask.shape[1] for layer in layers)

    def _call(self, ids: torch.Tensor, positions: torch.Tensor, **more: Any) -> torch.Tensor:
        given = {"attention_mask": self.mask, "position_ids": positions, "past_key_values": self.cache, **more}
        out = self.model(input_ids=ids, use_cache=True, **given)
        self.cache = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits


def _tokens(layer: Any) -> int:
    return int(layer.keys.shape[2]) if layer.is_initialized and layer.keys.dim() == 4 else 0


def _behind(heads: Heads, known: Sequence[int], width: int) -> Any:
    """A cache of `width` tokens whose rows end with the first `known` [B] tokens of their beginnings."""
    reader = heads.reader
    device = reader.mask.device
    whose = torch.tensor(heads.whose, device=device)
    shift = [
        reader.mask.shape[1] - heads.lengths[head] - (width - count)
        for head, count in zip(heads.whose, known, strict=True)
    ]
    place = torch.arange(width, device=device)[None] + torch.tensor(shift, device=device)[:, None]
    place = place.clamp(0, reader.mask.shape[1] - 1)[:, None, :, None]  # what is clamped is padding
    cache = copy(reader.cache)
    cache.layers = [copy(layer) for layer in cache.layers]
    for number, layer in enumerate(cache.layers):
        pair = []
        for part in (layer.keys, layer.values):
            part = part[whose]
            pair.append(part.gather(2, place.expand(-1, part.shape[1], -1, part.shape[3])))
        if isinstance(layer, _Roomy):
            cache.layers[number] = layer = _Roomy(layer)
        layer.keys, layer.values = pair
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = width
    return cache
