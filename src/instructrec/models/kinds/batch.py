"""Rows as tensors, and logits at some of their positions.

B rows of a micro-batch, T tokens of its longest row, U tokens of its longest answer, N supervised positions, D width,
V vocabulary; where rows share beginnings, S of them of P tokens each, with W behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..shared_prefix import SharedPrefix, picked

if TYPE_CHECKING:
    from ..reading import Pass

# A mask of four dimensions is taken as it is by every family, so none is built; the attention of ours has its own.
OWN_MASK = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    ids [B, T] token ids, filled up on the right.  mask [B, T] bool, or None when nothing was filled up.
    positions [N]: index into the B*T tokens from which a supervised token is predicted.  targets [N]: that token.
    owners [N]: place in the batch of the row that it belongs to.  rows: numbers of the rows.
    passes: where a reading plan wants several, with ids and mask of the last, to which the positions belong.
    pairs [2, K]: places in positions of the same token after a reading and after the next, where it is answered then.
    answers [B, U]: what a decoder beside an encoder is fed; `positions` then count in its B*U tokens.
    shared: where rows share their beginnings; ids, `positions` and `places`, of ids in their rows, are then of one long
    row [1, S*P + B*W].
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    rows: tuple[int, ...]
    passes: tuple[Pass, ...] = ()
    answers: torch.Tensor | None = None
    places: torch.Tensor | None = None
    shared: SharedPrefix | None = None
    pairs: torch.Tensor | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model's forward is given."""
        if self.shared:
            own = OWN_MASK.to(self.ids.device)
            return {
                "input_ids": self.ids, "position_ids": self.places, "attention_mask": own, "shared": self.shared
            }  # fmt: skip
        given = {"input_ids": self.ids, "attention_mask": self.mask}
        return given if self.answers is None else given | {"decoder_input_ids": self.answers}

    @property
    def saved(self) -> int:
        """Tokens of rows that are read with those of other rows."""
        return self.shared.saved if self.shared else sum(one.saved for one in self.passes)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "targets", "owners")}
        for name in ("mask", "answers", "places", "shared", "pairs"):
            part = getattr(self, name)
            moved[name] = None if part is None else part.to(device)
        return replace(self, **moved, passes=tuple(one.to(device) for one in self.passes))


def fill(rows: Sequence[Sequence[int]], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unequal length as [B, T] filled up on the right with `value`, and the mask [B, T] of what is theirs."""
    width = max(1, *(len(row) for row in rows)) if rows else 1
    ids = np.full((len(rows), width), value, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return ids, mask


def as_mask(mask: np.ndarray) -> torch.Tensor | None:
    """None where nothing was filled up: attention is quicker without a mask."""
    return None if mask.all() else torch.from_numpy(mask)


class _Wide:
    """Stands in for the forward of an output layer, and computes in fp32."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.weight = layer.weight.detach().float()
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


@contextmanager
def fine_logits(model: Any) -> Iterator[None]:
    """While this lasts, the output layer computes in fp32, without a gradient for itself. Logits of 20 in bf16 are an
    eighth apart: labels would tie, and calibration would take away noise."""
    head = model.get_output_embeddings()
    own: dict[str, Any] = vars(head) if type(head) is torch.nn.Linear else {}
    before = own.get("forward")  # packed weights
    half = own and (
        head.weight.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(head.weight.device.type)
    )
    if not half or isinstance(before, _Wide):
        yield
        return
    own["forward"] = _Wide(head)
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


@contextmanager
def logits_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """While this lasts, the model computes logits [1, N, V] at `positions` [N] of the flattened B*T tokens.

    `logits_to_keep` takes one set of positions for all rows, and calling the head ourselves would lose what some
    families do after it (Gemma-2's soft cap, Cohere's scale). Instead the hidden states are picked out on their way
    into the head, and everything after it is the model's own.
    """
    head = model.get_output_embeddings()

    def pick(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]  # [B, T, D]
        return (picked(hidden.reshape(-1, hidden.shape[-1]), positions).unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
