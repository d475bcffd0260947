"""LoRA's layers computed in one go: W x + s B A x and its gradients as six products, each added to where it belongs.

PEFT's layer makes the update apart, scales it, adds it, and leaves autograd to do the same backwards: a dozen passes
over the output of every layer, which take a processor as long as a third of the product itself.

M tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _Update(torch.autograd.Function):
    """Outputs [M, O] of inputs [M, I], W [O, I] and bias [O] or None, which are frozen, A [R, I] and B [O, R]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float
    ) -> torch.Tensor:
        small = inputs.dtype
        # Scaling B costs O R multiplications; scaling the update would cost M O.
        lower, upper = down.to(small), (up * scale).to(small)
        middle = inputs @ lower.t()
        outputs = functional.linear(inputs, weight, bias)
        outputs.addmm_(middle, upper.t())
        ctx.save_for_backward(inputs, weight, middle, lower, upper)
        ctx.scale, ctx.dtype = scale, down.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        inputs, weight, middle, lower, upper = ctx.saved_tensors
        back = gradient @ upper  # [M, R], holds the scale already
        into = None
        if ctx.needs_input_grad[0]:
            into = gradient @ weight
            into.addmm_(back, lower)
        down = (back.t() @ inputs).to(ctx.dtype)
        up = (gradient.t() @ middle).to(ctx.dtype).mul_(ctx.scale)
        return into, None, None, down, up, None


class Quick(Linear):  # type: ignore[misc]
    """PEFT's layer, computed by `_Update` where it is nothing but LoRA, and by PEFT where it is more."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Outputs [.., O] of x [.., I]."""
        name = None if args or kwargs else self._plain()
        if name is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        elif x.dtype != down.dtype:  # PEFT computes the update in fp32 there
            return super().forward(x)  # type: ignore[no-any-return]
        weight = base.weight.to(x.dtype)
        bias = None if base.bias is None else base.bias.to(x.dtype)
        flat = _Update.apply(x.reshape(-1, x.shape[-1]), weight, bias, down, up, self.scaling[name])
        outputs: torch.Tensor = flat.view(*x.shape[:-1], -1)
        return outputs

    def _plain(self) -> str | None:
        """The one adapter that is to be added, or None where anything else is going on."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        dropout, parts = self.lora_dropout[name], (self.base_layer, self.lora_A[name], self.lora_B[name])
        if self.training and not isinstance(dropout, torch.nn.Identity):
            return None
        if type(self.base_layer) is not torch.nn.Linear or self.base_layer.weight.requires_grad:
            return None
        return None if any(part._forward_hooks or part._forward_pre_hooks for part in parts) else name


def quicken(model: Any) -> None:
    """Let PEFT's LoRA layers in `model` compute as `Quick`; their weights, names and files stay as they are."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = Quick


__all__ = ["Quick", "quicken"]
