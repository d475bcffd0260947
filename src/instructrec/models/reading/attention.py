"""Attention over a memory, through the library's own attention interface: keys and values arrive after rotation, so a
memory of earlier strokes is simply put before them, and who sees whom is decided by what a token is, not by where it
stands in a tensor. No family needs code of its own, and padding anywhere changes nothing.

B rows, T tokens of a pass, M tokens of the memory, K keys (M + T), H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import InputError
from .. import products
from ..kinds import kind_of
from ..prefix import Prefix
from ..products import Reach
from ..shared_prefix import SharedPrefix, picked, seen
from .plan import SINK, ReadingPlan

NAME = "instructrec_reading"
# What some families add to the scores or take from the keys: the library's function lacks it, or a memory would.
_REFUSED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")

Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]  # keys and values [B, G, M, E] of every layer


@dataclass(frozen=True)
class Tags:
    """What each token is: [B, T] each. stroke 0 is a slot; answer: of the header or the answer; valid: no padding."""

    position: torch.Tensor
    stroke: torch.Tensor
    answer: torch.Tensor
    valid: torch.Tensor

    def to(self, device: torch.device) -> Tags:
        """The same on another device."""
        return Tags(*(part.to(device) for part in (self.position, self.stroke, self.answer, self.valid)))

    def join(self, other: Tags) -> Tags:
        """These tokens, then the others."""
        pairs = zip(self._parts, other._parts, strict=True)
        return Tags(*(torch.cat(pair, dim=1) for pair in pairs))

    @property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.position, self.stroke, self.answer, self.valid


@dataclass(frozen=True)
class Memory:
    """Keys and values of what was read, with what each of them is."""

    layers: Layers
    tags: Tags

    def of(self, rows: torch.Tensor) -> Memory:
        """The memory of these rows, [B], a row as often as it is named."""
        layers = tuple((picked(key, rows), picked(value, rows)) for key, value in self.layers)
        return Memory(layers, Tags(*(part[rows] for part in self.tags._parts)))


def visible(plan: ReadingPlan, query: Tags, key: Tags, window: int | None) -> torch.Tensor:
    """Who sees whom, [B, T, K] bool, for queries [B, T] and keys [B, K].

    Slots are seen by all. A token of an instruction sees earlier strokes whole (not under mix=gated, where strokes
    meet only in the average), and its own stroke up to itself, or whole where direction=bidirectional. An answer sees
    the memory after its stroke and itself causally. A layer with a window sees positions less than `window` back.
    """
    q_position, q_stroke, q_answer, _ = (part[:, :, None] for part in query._parts)
    k_position, k_stroke, k_answer, k_valid = (part[:, None, :] for part in key._parts)
    same = (k_stroke == q_stroke) & (~k_answer | q_answer)
    before = k_position <= q_position
    if plan.direction == "bidirectional":
        before = before | (~q_answer & ~k_answer & (q_stroke >= 2))
    seen = (same & before) | (k_stroke == 0)
    if plan.mix == "concat":
        earlier = ~k_answer & (k_stroke < q_stroke)
        if plan.memory == "sink+last":
            earlier = earlier & (~q_answer | ((k_stroke == 1) & (k_position < plan.slots + SINK)))
        seen = seen | earlier
    if window is not None:
        seen = seen & (q_position - k_position < window)
    return seen & k_valid


class Sight:
    """What one pass through the backbone sees: travels as a keyword argument down to every attention layer.

    A layer that is recomputed in the backward pass gets the same object, so that it sees the same memory again.
    read [layer]: keys and values of this pass, left behind by the layers.  keep: false where nobody will ask for them;
    with recomputed layers this object, and they with it, would stay until the end of the backward pass.
    """

    def __init__(self, plan: ReadingPlan, query: Tags, memory: Memory | None, keep: bool = True) -> None:
        self.plan, self.query, self.memory, self.keep = plan, query, memory, keep
        self.key = memory.tags.join(query) if memory else query
        self.read: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[tuple[int | None, torch.dtype], tuple[torch.Tensor, Reach | None]] = {}

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, G, K, E] that this layer attends to, from its own [B, G, T, E]."""
        if self.keep:
            self.read[layer] = (key, value)
        if self.memory is None:
            return key, value
        past_key, past_value = self.memory.layers[layer]
        return torch.cat([past_key.to(key.dtype), key], dim=2), torch.cat([past_value.to(value.dtype), value], dim=2)

    def mask(self, window: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, Reach | None]:
        """What is added to the scores, [B, 1, T, K]: 0 where a query sees a key, else a very small number; and how far
        its blocks reach."""
        if (window, dtype) not in self._masks:
            seen = visible(self.plan, self.query, self.key, window)
            memory = seen.shape[2] - seen.shape[1]
            seen[:, :, memory:].diagonal(dim1=1, dim2=2).fill_(True)  # padding sees itself: no row of scores is empty
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            mask = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
            self._masks[window, dtype] = mask, products.reach(seen) if mask.device.type == "cpu" else None
        return self._masks[window, dtype]

    @property
    def windows(self) -> set[int | None]:
        """Windows that the layers of this pass told of; None for a layer that sees everything."""
        return {window for window, _ in self._masks}

    def memorise(self, layers: int) -> Layers:
        """Keys and values of this pass in the order of the layers."""
        return tuple(self.read[layer] for layer in range(layers))


@dataclass
class Decoding:
    """The memory while an answer is written: room for all of it, filled token by token.

    layers: [B, G, room, E] each.  tags: [B, room].  length: tokens in it so far.
    """

    plan: ReadingPlan
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    tags: Tags
    length: int
    _masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def advance(self) -> None:
        """Make room for one token more: the answer's next, in every row."""
        self.length += 1
        self._masks.clear()

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Sight.extend`, for the one token [B, G, 1, E] that was made room for."""
        keys, values = self.layers[layer]
        keys[:, :, self.length - 1 : self.length] = key
        values[:, :, self.length - 1 : self.length] = value
        return keys[:, :, : self.length], values[:, :, : self.length]

    def mask(self, window: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, None]:
        """As `Sight.mask`, [B, 1, 1, length]."""
        if (window, dtype) not in self._masks:
            key = Tags(*(part[:, : self.length] for part in self.tags._parts))
            query = Tags(*(part[:, self.length - 1 : self.length] for part in self.tags._parts))
            seen = visible(self.plan, query, key, window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[window, dtype] = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return self._masks[window, dtype], None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    reading: Sight | Decoding | None = None,
    prefix: Prefix | None = None,
    shared: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function: the library's own, over the memory and with the mask of `reading` where there is one;
    `prefix` stands before everything else; `shared` says which tokens are the beginnings of several rows."""
    special = [name for name in _REFUSED if kwargs.get(name) is not None]
    blocks = None
    if special and (prefix is not None or shared is not None):
        raise InputError(f"this model's attention needs '{special[0]}'")
    if shared is not None:
        return _attend_sharing(module, query, key, value, shared, prefix=prefix, **kwargs), None
    if reading is not None:
        if special:
            raise InputError(f"strokes: this model's attention needs '{special[0]}'; it can be tuned with strokes=1")
        key, value = reading.extend(module.layer_idx, key, value)
        attention_mask, blocks = reading.mask(kwargs.get("sliding_window"), query.dtype)
        kwargs["is_causal"] = False
    causal = getattr(module, "is_causal", True) if kwargs.get("is_causal") is None else kwargs["is_causal"]
    if prefix is not None:
        own, tokens = key.shape[2], query.shape[2]
        key, value = prefix.extend(module.layer_idx, key, value)
        if attention_mask is not None or (causal and not _by_products(query)):
            attention_mask = prefix.widen(attention_mask, tokens, own, query.device)
        blocks = prefix.shift(blocks)
    masked = attention_mask is not None
    # One masked query is the one case in which the fused kernel is the quicker one on a processor.
    if _by_products(query) and not special and (query.shape[2] > 1 if masked else causal):
        scaling, dropout = kwargs.get("scaling"), kwargs.get("dropout", 0.0)
        return products.attention(query, key, value, attention_mask, blocks, scaling, dropout), None
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _attend_sharing(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shared: SharedPrefix, **kwargs: Any
) -> torch.Tensor:
    """[1, T, H, E]: the beginnings among themselves, then every row's rest over its beginning and itself."""
    (first, rest), keys, values = shared.split(query), shared.split(key), shared.split(value)
    window, found = kwargs.get("sliding_window"), []
    shared.windows.add(window)
    for part, own_key, own_value in (
        (first, keys[0], values[0]),
        (rest, shared.behind(*keys), shared.behind(*values)),
    ):
        size = own_key.shape[2]
        # Without a mask our products let the last query see every key; the library's kernel lines up the first ones.
        plain = (window is None or size <= window) and (_by_products(query) or part.shape[2] == size)
        mask = None if plain else seen(part.shape[2], size, window, query.device)
        heads, _ = attend(module, part, own_key, own_value, mask, **kwargs)
        found.append(heads.reshape(1, -1, *heads.shape[2:]))
    return torch.cat(found, dim=1)


def _by_products(query: torch.Tensor) -> bool:
    return query.device.type == "cpu"


def install(model: Any) -> None:
    """Let a decoder attend through `attend`, where it uses the function that this one stands in for."""
    if kind_of(model).causal and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def stack(parts: Sequence[Memory]) -> Memory:
    """Memories one behind the other."""
    first, *others = parts
    for other in others:
        layers = tuple(
            (torch.cat([a[0].to(b[0].dtype), b[0]], dim=2), torch.cat([a[1].to(b[1].dtype), b[1]], dim=2))
            for a, b in zip(first.layers, other.layers, strict=True)
        )
        first = Memory(layers, first.tags.join(other.tags))
    return first


AttentionInterface.register(NAME, attend)
# A call without `reading` has to be what it always was: it needs the mask that goes with the library's own function.
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
