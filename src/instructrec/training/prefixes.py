"""Whether rows that begin alike may share their beginning in a model (`models.shared_prefix`): found out by trying.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..errors import InputError
from ..models.kinds import Batch, kind_of
from ..models.kinds.decoder import collate, sharing
from ..models.loading import BROKEN, quiet
from ..models.reading.attention import NAME
from ..models.reading.reader import check_layers
from ..models.structure import in_mode
from ..prompts.template import Rendered

_exact: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # models that were tried


def may_share(model: Any, *, training: bool, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> bool:
    """Whether a decoder computes for rows that share their beginning what it computes for each by itself.

    Not with an attention other than ours, nor where layers mix tokens in other ways or see less than attention is told
    of, nor in training with dropout, which is to be another for each row.  Every process of a run has to ask, since the
    model is called.
    """
    if not kind_of(model).causal or model.config.get_text_config()._attn_implementation != NAME:
        return False
    with autocast():
        if training:  # what a method puts into a model does not make it another object
            return _same(model) and not _draws(model)
        if model not in _exact:
            _exact[model] = _same(model)
        return _exact[model]


def _rows(model: Any) -> list[Rendered]:
    """Three short rows, two beginnings among them."""
    size = min(model.get_input_embeddings().weight.shape[0], 50) if hasattr(model, "get_input_embeddings") else 50
    bases, rests = [[(7 * place + start) % size for place in range(5)] for start in (3, 4)], ((1, 2), (5, 6, 7), (8, 9))
    ids = [bases[number // 2] + [one % size for one in rest] for number, rest in enumerate(rests)]
    return [Rendered(row, [False] * 3 + [True] * (len(row) - 3), 2, 3) for row in ids]


@torch.no_grad()
def _same(model: Any) -> bool:
    """Whether rows come out the same both ways."""
    rows, device = _rows(model), next(model.parameters()).device
    alone, together = collate(rows, 0), sharing(rows, 0)
    assert together is not None and together.shared is not None
    try:
        with quiet(), in_mode(model, training=False):
            plain, shared = (_logits(model, batch.to(device)) for batch in (alone, together))
        check_layers(model.config.get_text_config(), together.shared.windows)
    except (InputError, NotImplementedError, *BROKEN):
        return False
    # With a wrong beginning it is a tenth or more, in bf16 with the right one a hundredth at the most.
    apart = float((plain - shared).float().norm()) / max(float(plain.float().norm()), 1e-6)
    return apart <= (1e-4 if plain.dtype == torch.float32 else 0.02)  # False for what is no number


@torch.no_grad()
def _draws(model: Any) -> bool:
    """Whether the model draws numbers in training. Not seen by what comes out: an update that starts at zero hides its
    dropout until the first step."""
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with quiet(), torch.random.fork_rng(devices=devices), in_mode(model, training=True):
        before = _drawn(device)
        _logits(model, collate(_rows(model), 0).to(device))
        return not all(map(torch.equal, before, _drawn(device)))


def _drawn(device: torch.device) -> list[torch.Tensor]:
    """States of the generators that a model may draw from."""
    return [torch.random.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    return kind_of(model).logits(model, batch)


__all__ = ["may_share"]
