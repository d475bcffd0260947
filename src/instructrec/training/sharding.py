"""Weights cut up between the processes of a run (FSDP2, arXiv 2304.11277 in its second form): torch's `fully_shard`.

Called here and not through accelerate, which does not offer it on processors, so that what is tested without GPUs is
what runs on them. Frozen weights are cut up; adapters are small and stay whole, each process has its own copy. With
full fine-tuning the trained weights, their gradients and the optimizer's moments are cut up too; on disk they are whole
as always, so that a run goes on with or without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import InputError
from ..launch import on
from ..models.methods import Method, trained_parameters
from ..models.reading import ReadingPlan


def wanted() -> bool:
    """Whether the launcher was asked to cut weights up (`--use_fsdp`). Raises InputError for what is not offered.

    accelerate is kept from seeing it: it would want to wrap the model itself.
    """
    if not on("ACCELERATE_USE_FSDP"):
        return False
    if on("FSDP_OFFLOAD_PARAMS"):
        raise InputError("launcher: --fsdp_offload_params is not supported")
    del os.environ["ACCELERATE_USE_FSDP"]
    return True


def check_sharded(method: Method, plan: ReadingPlan) -> None:
    """Raises InputError where layers are called past the module that torch waits for before it brings their weights
    together."""
    if not method.shardable:
        raise InputError(
            f"launcher: --use_fsdp can't cut up what method '{method.name}' reads its embeddings with (want another "
            "method, or no --use_fsdp)"
        )
    if not plan.one_pass(plan.most):  # the gradient of a memory goes past it
        raise InputError(
            f"launcher: --use_fsdp can't cut up what reads in several passes (read {plan.describe()}; "
            "want tuned, shared, causal, concat, memory=all and no slots, or no --use_fsdp)"
        )


def shard(model: Any, device: torch.device, count: int) -> None:
    """Cut the weights of a decoder, possibly with an adapter, up between `count` processes, layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    trained = list(trained_parameters(model).values())
    whole = set() if len(trained) == len(list(model.parameters())) else set(trained)
    mesh = init_device_mesh(device.type, (count,))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = set(base._no_split_modules or ())
    for module in [one for one in model.modules() if type(one).__name__ in layers]:
        fully_shard(module, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    model.to(device)  # what stays whole
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is a sum over processes, not a mean; without the second, gloo would have to scale, and can't.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def is_cut(parameter: torch.Tensor) -> bool:
    """Whether this process has only its part of a tensor."""
    return isinstance(parameter, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor. Where it is cut up, all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor cut up as a parameter is; left as it is where that one is whole."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


@contextmanager
def writable(model: Any, optimizer: Any) -> Iterator[Any]:
    """The optimizer with whole tensors; while this lasts, `model.state_dict` gives whole ones too.

    All processes have to enter; only the first, which writes, may ask inside.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Asking for `state_dict` lets go of weights that are together at the moment. If only the first process did,
            # the next call of the model would bring them together there alone, and break.
            module.reshard()
    trained = trained_parameters(model).values()
    if not any(map(is_cut, trained)):
        yield optimizer
        return
    found: dict[int, torch.Tensor] = {}  # tied weights stay tied
    weights = {}
    for name, value in model.state_dict().items():
        place = value.to_local().data_ptr() if isinstance(value, DTensor) else value.data_ptr()
        weights[name] = found[place] = found[place] if place in found else whole(value).cpu()
    state = {
        parameter: {key: whole(value).cpu() for key, value in kept.items() if isinstance(value, torch.Tensor)}
        for parameter, kept in _ordered(optimizer)
    }
    model.state_dict = lambda *_, **__: dict(weights)
    try:
        yield SimpleNamespace(param_groups=optimizer.param_groups, state=state)
    finally:
        del model.state_dict


def _ordered(optimizer: Any) -> Sequence[tuple[torch.Tensor, Any]]:
    """Parameters with their state, in the same order in all processes."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [(parameter, optimizer.state[parameter]) for parameter in held if parameter in optimizer.state]
