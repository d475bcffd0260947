"""Bottleneck task adapter: h + U f(V h + b) + c behind attention and feed-forward layers, U and c zero at the start.

Reference: Houlsby et al., arXiv 1902.00751; with `placement=pfeiffer` behind the feed-forward layers only, as in
Pfeiffer et al., arXiv 2005.00247. Differs from both: the start is the backbone's output exactly instead of nearly, and
the backbone's layer norms stay as they are. It stands on the result of a part's last linear layer, before anything is
added to it or normalised. PEFT has no such method; its files are named as PEFT's are, with a type of our own.

D width of the model, N width of the bottleneck.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...errors import InputError, did_you_mean
from ..loading import json_object, read_tensors
from ..structure import sublayers
from . import EVERY_KIND, Method
from .through_peft import Unfit, check_finite, check_shapes, read_more, short

TYPE = "BOTTLENECK"
FIRST = "default"  # the name of the first adapter, as in PEFT
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
_PLACEMENTS = ("houlsby", "pfeiffer")


@dataclass(frozen=True)
class Shape:
    """What makes an adapter, and what its file keeps. width: N."""

    width: int
    placement: str
    activation: str
    dropout: float


class Bottleneck(nn.Module):
    """h + U f(V h + b) + c for h [.., D]."""

    def __init__(self, size: int, shape: Shape) -> None:
        super().__init__()
        self.down = nn.Linear(size, shape.width)
        self.up = nn.Linear(shape.width, size)
        self.activation, self.dropout = _ACTIVATIONS[shape.activation], shape.dropout
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[.., D], in the type of what came in."""
        inner = hidden
        if not torch.is_autocast_enabled(hidden.device.type):  # fp32 weights behind a bf16 backbone
            inner = hidden.to(self.down.weight.dtype)
        inner = functional.dropout(self.activation(self.down(inner)), self.dropout, self.training)
        return hidden + self.up(inner).to(hidden.dtype)


class Bottlenecks(nn.ModuleDict):
    """The adapters of one place by name, of which one works, or none."""

    def __init__(self, size: int, shape: Shape) -> None:
        super().__init__()
        self.size, self.shape = size, shape
        self.working: str | None = FIRST

    def grow(self, name: str, like: torch.Tensor) -> None:
        """One adapter more, in fp32 where `like` is."""
        self[name] = Bottleneck(self.size, self.shape).to(like.device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[.., D] as the working adapter leaves it."""
        if self.working is None:
            return hidden
        changed: torch.Tensor = self[self.working](hidden)
        return changed


def _behind(place: Any, _: Any, result: Any) -> Any:
    """Forward hook of a place; some give more than their result."""
    if isinstance(result, tuple):
        return (place.bottleneck(result[0]), *result[1:])
    return place.bottleneck(result)


class Adapter(Method):
    """Small networks behind attention and feed-forward layers."""

    name = "adapter"
    reference = "arXiv 1902.00751"
    learning_rate = 1e-3
    several = True
    kinds = EVERY_KIND
    library = "instructrec"

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The model itself, with an adapter in every place. Raises InputError where it has none."""
        shape = Shape(**{name: options[name] for name in ("width", "placement", "activation", "dropout")})
        places = _places(model, shape.placement)
        if not places:
            raise InputError("adapter: found no layers of attention and feed-forward parts in this model")
        torch.manual_seed(seed)  # V is drawn at random
        model.requires_grad_(False)
        for name in places:
            place = model.get_submodule(name)
            place.bottleneck = Bottlenecks(int(model.config.get_text_config().hidden_size), shape)
            place.bottleneck.grow(FIRST, next(place.parameters()))
            place.register_forward_hook(_behind)
        return model

    def save(self, model: Any, folder: Path, base: str) -> None:
        """adapter_config.json and adapter_model.safetensors, and those of the other adapters in folders of their
        names."""
        from safetensors.torch import save_file

        found = _found(model)
        shape = next(iter(found.values())).shape
        about = {"peft_type": TYPE, "base_model_name_or_path": base, **asdict(shape)}
        for name in next(iter(found.values())):
            target = folder if name == FIRST else folder / name
            target.mkdir(exist_ok=True)
            (target / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            weights = {key: weight.detach().cpu().contiguous() for key, weight in _weights(found, name).items()}
            save_file(weights, target / WEIGHTS, {"format": "pt"})

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The backbone with the adapter from `folder`. Raises InputError, the model being untouched, when the adapter
        is damaged, does not fit, or is of a kind that this version does not know."""
        shape = _read_shape(folder / CONFIG)
        weights = read_tensors(folder / WEIGHTS)
        size, shapes = int(model.config.get_text_config().hidden_size), {}
        for name in _places(model, shape.placement):
            shapes[f"{name}.down.weight"], shapes[f"{name}.down.bias"] = [shape.width, size], [shape.width]
            shapes[f"{name}.up.weight"], shapes[f"{name}.up.bias"] = [size, shape.width], [size]
        try:
            check_shapes(weights, shapes)
        except Unfit as error:
            raise InputError(f"{folder}: the adapter does not fit this backbone: {error}") from error
        check_finite(weights, folder / WEIGHTS)
        self.attach(model, asdict(shape), 0)
        _fill(model, FIRST, weights, trainable)
        return model

    def add(self, model: Any, name: str, options: Mapping[str, Any], seed: int) -> None:
        """An adapter like the first one; V is drawn anew."""
        torch.manual_seed(seed)
        for places in _found(model).values():
            places.grow(name, next(places.parameters()))

    def load_more(self, model: Any, folder: Path, name: str, *, trainable: bool = False) -> None:
        """The adapter in `folder/name`. Raises InputError when it is missing, damaged or not like the first one."""
        weights = read_more(folder / name / WEIGHTS, _weights(_found(model), FIRST))
        self.add(model, name, {}, 0)
        _fill(model, name, weights, trainable)

    @contextmanager
    def using(self, model: Any, weights: str) -> Iterator[Any]:
        """The model with another adapter, or with none."""
        places = list(_found(model).values())
        before = [place.working for place in places]
        for place in places:
            place.working = None if weights == "off" else weights
        try:
            yield model
        finally:
            for place, name in zip(places, before, strict=True):
                place.working = name

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        """The backbone alone."""
        with self.using(model, "off"):
            yield model


def _places(model: Any, placement: str) -> list[str]:
    return [part.output for part in sublayers(model) if placement == "houlsby" or not part.attention]


def _found(model: Any) -> dict[str, Bottlenecks]:
    """Name of a place -> its adapters."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Bottlenecks)}
    return {name.removesuffix(".bottleneck"): module for name, module in found.items()}


def _weights(found: Mapping[str, Bottlenecks], adapter: str) -> dict[str, Any]:
    return {
        f"{place}.{name}": weight
        for place, adapters in found.items()
        for name, weight in adapters[adapter].named_parameters()
    }


def _fill(model: Any, adapter: str, weights: Mapping[str, Any], trainable: bool) -> None:
    with torch.no_grad():
        for name, parameter in _weights(_found(model), adapter).items():
            parameter.copy_(weights[name])
            parameter.requires_grad_(trainable)


def _read_shape(file: Path) -> Shape:
    """The shape in an adapter's configuration. Raises InputError for a field that this version does not know, or that
    says what it can't be."""
    given = json_object(file)
    if given.pop("peft_type", None) != TYPE:
        raise InputError(f"{file}: peft_type: not a bottleneck adapter (want '{TYPE}')")
    given.pop("base_model_name_or_path", None)
    known = Shape.__dataclass_fields__
    for key in sorted(given.keys() ^ known.keys())[:1]:
        raise InputError(f"{file}: {key}: " + (f"unknown, {did_you_mean(key, known)}" if key in given else "missing"))
    width, dropout = given["width"], given["dropout"]
    if type(width) is not int or not 1 <= width <= 2**20:
        raise InputError(f"{file}: width: out of range (got {short(width)}, want a whole number from 1 upwards)")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise InputError(f"{file}: dropout: out of range (got {short(dropout)}, want a number from 0 to below 1)")
    for key, allowed in (("placement", _PLACEMENTS), ("activation", tuple(_ACTIVATIONS))):
        if given[key] not in allowed:
            raise InputError(f"{file}: {key}: unknown (got {short(given[key])}, want {' or '.join(allowed)})")
    return Shape(**given)
