"""Where the parts of a pretrained model are, found by walking its modules instead of by a table of families.

D width of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@contextmanager
def in_mode(model: Any, *, training: bool) -> Iterator[None]:
    """The model as in training, or not, and afterwards every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Sublayer:
    """An attention or feed-forward part of one layer, by the names of its modules.

    attention: False for a feed-forward part.  output: what gives the part's result of width D: its last linear layer,
    or, where the part is a mixture of experts, the part itself.  inputs: its other linear layers, of a mixture none.
    """

    attention: bool
    inputs: tuple[str, ...]
    output: str

    @property
    def keys_and_values(self) -> tuple[str, ...]:
        """Of an attention part, the linear layers that make keys or values: all but those of the queries alone."""
        return tuple(name for name in self.inputs if not _queries_only(_last(name)))


def is_conv1d(module: Any) -> bool:
    """True for GPT-2's linear layers: the weight is stored transposed."""
    return type(module).__name__ == "Conv1D"


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of every linear layer but the output head."""
    head = model.get_output_embeddings()
    found = {name: _size(module) for name, module in model.named_modules() if module is not head}
    return {name: size for name, size in found.items() if size}


def sublayers(model: Any) -> list[Sublayer]:
    """The attention and feed-forward parts of every layer, in the order of their definition.

    A layer is a member of an outermost list of modules. Attention is what calls itself so; what else has linear
    layers is feed-forward.
    """
    width = int(model.config.get_text_config().hidden_size)
    found: list[Sublayer] = []
    for name, layer in _layers(model):
        attention = list(_attention(name, layer))
        for part, module in attention:
            linear = [(inner, size) for inner, size in _linear(part, module) if size]
            found += _sublayer(True, linear, width)
        rest = [(inner, module) for inner, module in _walk(name, layer, {part for part, _ in attention})]
        experts = {_child(name, inner) for inner, module in rest if _is_mixture(module)}
        found += [Sublayer(False, (), part) for part in sorted(experts)]
        linear = [(inner, size) for inner, module in rest if (size := _size(module))]
        found += [] if experts else _sublayer(False, linear, width)
    return found


def _sublayer(attention: bool, linear: list[tuple[str, tuple[int, int]]], width: int) -> list[Sublayer]:
    back = [name for name, (_, outputs) in linear if outputs == width]
    if attention:  # some define their output first
        back = [name for name in back if not re.match("w?[qkv]", _last(name))] or back
    return [Sublayer(attention, tuple(name for name, _ in linear if name != back[-1]), back[-1])] if back else []


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Members of the outermost lists of modules."""
    lists: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ == "ModuleList" and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
            yield from ((f"{name}.{place}", layer) for place, layer in module.named_children())


def _attention(name: str, layer: Any) -> Iterator[tuple[str, Any]]:
    """The outermost attention modules of a layer."""
    taken: list[str] = []
    for inner, module in layer.named_modules():
        full = f"{name}.{inner}" if inner else name
        if type(module).__name__.endswith("Attention") and not any(full.startswith(f"{one}.") for one in taken):
            taken.append(full)
            yield full, module


def _walk(name: str, layer: Any, without: set[str]) -> Iterator[tuple[str, Any]]:
    """Modules of a layer, less those inside the named ones."""
    for inner, module in layer.named_modules():
        full = f"{name}.{inner}" if inner else name
        if not any(full == one or full.startswith(f"{one}.") for one in without):
            yield full, module


def _linear(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    for inner, one in module.named_modules():
        yield (f"{name}.{inner}" if inner else name), _size(one)


def _size(module: Any) -> tuple[int, int] | None:
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if is_conv1d(module):
        inputs, outputs = module.weight.shape
        return int(inputs), int(outputs)
    return None


def _is_mixture(module: Any) -> bool:
    """True for what holds the experts of a mixture: one tensor for all of them, or a list of like networks."""
    if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
        return True
    kinds = [type(one) for one in module] if type(module).__name__ == "ModuleList" else []
    return len(kinds) > 1 and len(set(kinds)) == 1


def _child(layer: str, inner: str) -> str:
    return ".".join([layer, inner.removeprefix(f"{layer}.").partition(".")[0]])


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _queries_only(name: str) -> bool:
    return re.match("w?q", name) is not None and not {"k", "v"} & set(name)
