"""Weights laid out for the processor's product kernels while a model answers.

A product with few rows, as each token of an answer makes, spends most of its time on bringing the weights into the
order that the kernel wants, anew each time. oneDNN can do that once. In bf16 the results are those of the plain product
bit by bit, since it is the same kernel; in fp32 the plain product is MKL's, and sums are ordered otherwise.

M rows of a product.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LIMIT = 2 << 30  # bytes: a packed copy lies beside the weights, so that larger models answer without
SMALLEST = 1 << 16  # numbers of a weight: below, the call costs more than the layout (LoRA's two factors)
_ROWS = 16  # M that the layout is made for; others are computed as well
_TYPES = (torch.bfloat16, torch.float32)

_lock = threading.Lock()


class _Packed:
    """Stands in for the forward of a linear layer. users: blocks that want it."""

    def __init__(self, layer: nn.Linear) -> None:
        self.users = 0
        self.weight = layer.weight
        self.pointer, self.version = layer.weight.data_ptr(), _version(layer.weight)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        self.layer = layer

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        layer, weight = self.layer, self.layer.weight
        same = weight is self.weight and weight.data_ptr() == self.pointer and _version(weight) == self.version
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or input.dtype != weight.dtype
        if plain or not same or input.numel() == 0:
            return nn.functional.linear(input, weight, layer.bias)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed, layer.bias, "none", [], "")
        return found


def _version(weight: torch.Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def available() -> bool:
    """Whether this build of torch has the two operators (they are those that its compiler uses)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def _layers(model: Any) -> list[nn.Linear]:
    """What is packed: plain linear layers on the processor, all of them or none; under autocast none would be used."""
    if not isinstance(model, nn.Module) or torch.is_autocast_enabled("cpu") or not available():
        return []
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and isinstance(vars(module).get("forward"), (_Packed, type(None)))  # another's stand-in is left alone
        and module.weight.device.type == "cpu"
        and module.weight.dtype in _TYPES
        and module.weight.numel() >= SMALLEST
    ]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in found)
    return found if size <= LIMIT else []


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """While this lasts, `model` computes with packed weights; blocks may lie in each other and in several threads.

    Gradients and autocast go the usual way, as does a layer whose weight is replaced or written to meanwhile. Takes the
    memory of the weights once more.
    """
    hold(model)
    try:
        yield
    finally:
        release(model)


def hold(model: Any) -> None:
    """Pack the weights of a model, until `release` was called as often."""
    with _lock, torch.inference_mode():
        for layer in _layers(model):
            if "forward" not in vars(layer):
                layer.forward = _Packed(layer)  # type: ignore[method-assign]
            vars(layer)["forward"].users += 1


def release(model: Any) -> None:
    """Let go of what `hold` packed."""
    with _lock:
        for layer in model.modules() if isinstance(model, nn.Module) else ():
            if isinstance(found := vars(layer).get("forward"), _Packed):
                found.users -= 1
                if not found.users:
                    del layer.forward


__all__ = ["LIMIT", "SMALLEST", "available", "hold", "packed", "release"]
