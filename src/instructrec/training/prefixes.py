"""Whether rows that begin alike may share their beginning in a model (`models.shared_prefix`): found out by trying.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..errors import InputError
from ..models.kinds import Batch, kind_of
from ..models.kinds.decoder import collate, sharing
from ..models.loading import BROKEN, quiet
from ..models.reading.attention import NAME
from ..prompts.template import Rendered


@dataclass(frozen=True)
class _Found:
    """exact: the same comes out with and without sharing.  noisy: in training, numbers are drawn, as dropout does."""

    exact: bool
    noisy: bool


_found: WeakKeyDictionary[Any, _Found] = WeakKeyDictionary()


def may_share(model: Any, *, training: bool, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> bool:
    """Whether a decoder computes for rows that share their beginning what it computes for each by itself.

    Not with an attention other than ours, nor where layers mix tokens in other ways, nor in training with dropout,
    which is to be another for each row.  Every process of a run has to ask, since the model is called.
    """
    if not kind_of(model).causal or model.config.get_text_config()._attn_implementation != NAME:
        return False
    if model not in _found:
        with autocast():
            _found[model] = _try(model)
    return _found[model].exact and not (training and _found[model].noisy)


@torch.no_grad()
def _try(model: Any) -> _Found:
    """Read three short rows both ways, two beginnings among them, and once more as in training."""
    size = min(model.get_input_embeddings().weight.shape[0], 50) if hasattr(model, "get_input_embeddings") else 50
    bases, rests = [[(7 * place + start) % size for place in range(5)] for start in (3, 4)], ((1, 2), (5, 6, 7), (8, 9))
    ids = [bases[number // 2] + [one % size for one in rest] for number, rest in enumerate(rests)]
    rows = [Rendered(row, [False] * 3 + [True] * (len(row) - 3), 2, 3) for row in ids]
    device = next(model.parameters()).device
    alone, together = collate(rows, 0), sharing(rows, 0)
    assert together is not None
    modes = [(module, module.training) for module in model.modules()]
    try:
        with quiet(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model.eval()
            plain, shared = (_logits(model, batch.to(device)) for batch in (alone, together))
            # With a wrong beginning it is a tenth or more, in bf16 with the right one a hundredth at the most.
            apart_by = float((plain - shared).float().norm()) / max(float(plain.float().norm()), 1e-6)
            exact = apart_by <= (1e-4 if plain.dtype == torch.float32 else 0.02)  # False for what is no number
            model.train()
            before = _drawn(device)
            _logits(model, alone.to(device))
            # Not by what comes out: an update that starts at zero hides its dropout until the first step.
            noisy = not all(map(torch.equal, before, _drawn(device)))
    except (InputError, NotImplementedError, *BROKEN):
        return _Found(False, False)
    finally:
        for module, mode in modes:
            module.training = mode
    return _Found(exact, noisy)


def _drawn(device: torch.device) -> list[torch.Tensor]:
    """States of the generators that a model may draw from."""
    return [torch.random.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    return kind_of(model).logits(model, batch)


__all__ = ["may_share"]
