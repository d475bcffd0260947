"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) in few passes, with nothing kept for the backward pass but its input.

Written out, as models have it, a norm leaves two copies of the stream in fp32 for every layer, and takes a processor a
dozen passes over them.

M tokens, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _Norm(torch.autograd.Function):
    """Outputs [M, D] of x [M, D]: x / sqrt(mean of its squares + eps) * weight [D], which is frozen.

    early: bf16 is rounded before the weight is multiplied, as Llama does it, and not after, as Gemma does.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, early: bool
    ) -> torch.Tensor:
        wide = _wide(x)
        factor = torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        scaled = wide * factor
        return scaled.to(x.dtype) * weight if early else scaled.mul_(weight.to(scaled.dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, factor = ctx.saved_tensors
        wide = _wide(x)
        back = _wide(gradient) * weight.to(wide.dtype)
        along = torch.linalg.vecdot(back, wide)[:, None] * factor.pow(3).div_(-x.shape[-1])
        return back.mul_(factor).addcmul_(wide, along).to(x.dtype), None, None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _forward(module: Any, own: Any, eps: float, one: float, early: bool, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    if weight.requires_grad or x.dtype != weight.dtype or not (x.requires_grad and torch.is_grad_enabled()):
        return own(x)  # type: ignore[no-any-return]
    flat = _Norm.apply(x.reshape(-1, x.shape[-1]), weight + one if one else weight, eps, early)
    return flat.view(x.shape)  # type: ignore[no-any-return]


@torch.no_grad()
def quicken(model: Any) -> None:
    """Let what is an RMSNorm in `model` compute as `_Norm` where a gradient is wanted for its input alone.

    Whether a module is one, and of which fashion, is found out by trying: on random rows of the model's type it has to
    give the same numbers. What gives others, or has more than a weight, stays as it is.
    """
    found: dict[tuple[type, int], tuple[float, float, bool] | None] = {}
    for module in model.modules():
        weights = dict(module.named_parameters())
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if "rmsnorm" not in type(module).__name__.lower() or list(weights) != ["weight"] or not eps:
            continue
        if module.weight.dtype == torch.float64:  # models compute their norms in fp32 there
            continue
        key = type(module), module.weight.shape[0]
        if key not in found:
            found[key] = _fashion(module, float(eps))
        if found[key] is not None and "forward" not in vars(module):
            eps, one, early = found[key]  # type: ignore[misc]
            module.forward = partial(_forward, module, module.forward, eps, one, early)


def _fashion(module: Any, eps: float) -> tuple[float, float, bool] | None:
    """eps, what is added to the weight, and when it is multiplied; None where nothing fits."""
    weight = module.weight
    rows = torch.randn(8, weight.shape[0], generator=torch.Generator().manual_seed(0)).mul_(0.02)
    rows = rows.to(weight.device, weight.dtype)
    wanted = module(rows)
    for one in (0.0, 1.0):
        for early in (True, False):
            given = _Norm.apply(rows, weight + one if one else weight, eps, early)
            if wanted.shape == given.shape and torch.allclose(
                wanted, given, rtol=1e-2 if weight.itemsize == 2 else 1e-5
            ):
                return eps, one, early
    return None


__all__ = ["quicken"]
