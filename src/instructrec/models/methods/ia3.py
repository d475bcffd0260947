"""IA3: keys, values and what the feed-forward layers compute inside are multiplied by learned vectors, 1 at the start.

Reference: Liu et al., arXiv 2205.05638. Differs from it where queries, keys and values come out of one linear layer
(GPT-2): that layer's whole output is scaled, as PEFT does it. Through PEFT, in PEFT's files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..structure import linear_layers, sublayers
from . import EVERY_KIND
from .through_peft import Described, ThroughPeft, fields_of, named_layers, names_in, sizes_of, task_of, transposed


class Ia3(ThroughPeft):
    """Learned scales inside attention and feed-forward layers."""

    name = "ia3"
    reference = "arXiv 2205.05638"
    learning_rate = 1e-2
    kinds = EVERY_KIND

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The model wrapped by PEFT. Raises InputError for a target that names no linear layer, and where the model has
        none of the layers that the method scales."""
        from peft import IA3Config, get_peft_model

        parts = sublayers(model)
        inside = [part.output for part in parts if not part.attention and part.inputs]
        if options["target"] == "auto":
            found = [name for part in parts if part.attention for name in part.keys_and_values]
            if not found or not inside:
                what = "keys and values" if inside else "feed-forward layers (are they a mixture of experts?)"
                raise InputError(f"ia3.target: found no {what} in this model (want names of linear layers)")
            targets = found + inside
        else:
            names = named_layers(model, "ia3.target", options["target"])
            if not names:
                raise InputError("ia3.target: empty (want auto or names of linear layers)")
            targets = [name for name in linear_layers(model) if name.rpartition(".")[2] in names]
        inside = [name for name in inside if name in targets]
        targets, inside = _shortened(targets, inside, model)
        config = IA3Config(
            target_modules=targets,
            feedforward_modules=inside,
            fan_in_fan_out=transposed(model),
            task_type=task_of(model),
        )
        return get_peft_model(model, config)

    def described(self, model: Any, file: Path) -> Described:
        """Of IA3."""
        from peft import IA3Config

        known = ("feedforward_modules", "init_ia3_weights")
        given = fields_of(file, "IA3", IA3Config(), known, "plain IA3")
        sizes = sizes_of(model, file, given.get("target_modules"))
        ends = given.get("feedforward_modules") or []
        if ends:
            ends = names_in(ends, file, "feedforward_modules")
        inside = [name for name in sizes if name.endswith(tuple(ends))]
        shapes = {
            f"base_model.model.{name}.ia3_l": [1, inputs] if name in inside else [outputs, 1]
            for name, (inputs, outputs) in sizes.items()
        }
        config = partial(
            IA3Config,
            target_modules=sorted(sizes),
            feedforward_modules=sorted(inside),
            fan_in_fan_out=transposed(model),
            task_type=task_of(model),
        )
        return config, shapes


def _shortened(names: Sequence[str], inside: Sequence[str], model: Any) -> tuple[list[str], list[str]]:
    """Both lists by the last one or two parts of their names, as far as PEFT then finds the same layers: for a
    configuration that can be read, and that fits a model of more layers."""
    layers = linear_layers(model)
    for parts in (1, 2):
        ends, inner = ({".".join(name.split(".")[-parts:]) for name in some} for some in (names, inside))
        found = [name for name in layers if name.endswith(tuple(f".{end}" for end in ends))]
        found_inside = [name for name in found if name.endswith(tuple(inner))]
        if sorted(found) == sorted(names) and sorted(found_inside) == sorted(inside):
            return sorted(ends), sorted(inner)
    return sorted(names), sorted(inside)
