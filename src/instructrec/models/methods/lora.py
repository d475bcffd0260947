"""LoRA: W x + s B A x with W frozen, A random, B zero at the start, s = alpha / rank.

Reference: Hu et al., arXiv 2106.09685. Differs from it as common today: on all linear layers of the blocks instead of
the query and value projections only. Through PEFT, in PEFT's files. Two variants:

rsLoRA (Kalajdzievski, arXiv 2312.03732): s = alpha / sqrt(rank), so that a larger rank does not learn more slowly.
DoRA (Liu et al., arXiv 2402.09353): m (W + s B A) / |W + s B A| with a learned length m for each output, |W| at first;
no gradient goes through the lengths in the denominator, as the paper proposes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..structure import linear_layers
from . import EVERY_KIND
from .through_peft import Described, ThroughPeft, fields_of, named_layers, short, sizes_of, task_of, transposed

_KNOWN = ("r", "lora_alpha", "lora_dropout", "init_lora_weights", "use_dora", "use_rslora")
_TAKES = "LoRA, DoRA and rsLoRA"


class Lora(ThroughPeft):
    """Low-rank updates beside the linear layers."""

    name = "lora"
    reference = "arXiv 2106.09685"
    learning_rate = 1e-3
    kinds = EVERY_KIND

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The model wrapped by PEFT. Raises InputError for a target that names no linear layer."""
        import torch
        from peft import LoraConfig, get_peft_model

        limit = max(min(size) for size in linear_layers(model).values())
        if options["rank"] > limit:
            raise InputError(
                f"lora.rank: more than this model's layers have (got {options['rank']}, want at most {limit})"
            )
        config = LoraConfig(
            r=options["rank"],
            lora_alpha=options["alpha"],
            lora_dropout=options["dropout"],
            target_modules=self._targets(model, options["target"]),
            use_dora=options.get("dora", False),
            use_rslora=options.get("rslora", False),
            fan_in_fan_out=transposed(model),
            task_type=task_of(model),
        )
        torch.manual_seed(seed)  # A is drawn at random
        return get_peft_model(model, config)

    def _targets(self, model: Any, target: str) -> str | list[str]:
        if target == "all-linear":
            return target
        names = named_layers(model, "lora.target", target)
        if not names:
            raise InputError("lora.target: empty (want all-linear or names of linear layers)")
        return names

    def described(self, model: Any, file: Path) -> Described:
        """Of LoRA, DoRA and rsLoRA."""
        from peft import LoraConfig

        given = fields_of(file, "LORA", LoraConfig(), _KNOWN, _TAKES)
        if given.get("init_lora_weights", True) not in (True, False, "gaussian"):  # the others change the backbone too
            value = short(given["init_lora_weights"])
            raise InputError(f"{file}: init_lora_weights: this version takes {_TAKES} only (got {value})")
        sizes = sizes_of(model, file, given.get("target_modules"))
        limit = max(min(size) for size in sizes.values())
        rank: Any = given.get("r")
        alpha: Any = given.get("lora_alpha")
        dropout: Any = given.get("lora_dropout", 0.0)
        if type(rank) is not int or not 1 <= rank <= limit:
            raise InputError(f"{file}: r: out of range (got {short(rank)}, want a whole number from 1 to {limit})")
        if type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
            raise InputError(f"{file}: lora_alpha: out of range (got {short(alpha)}, want a number above 0)")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise InputError(
                f"{file}: lora_dropout: out of range (got {short(dropout)}, want a number from 0 to below 1)"
            )
        for name in ("use_dora", "use_rslora"):
            if not isinstance(given.get(name, False), bool):
                raise InputError(f"{file}: {name}: not a switch (got {short(given[name])}, want true or false)")
        dora, rslora = given.get("use_dora", False), given.get("use_rslora", False)
        shapes: dict[str, list[int]] = {}
        for name, (inputs, outputs) in sizes.items():
            shapes[f"base_model.model.{name}.lora_A.weight"] = [rank, inputs]
            shapes[f"base_model.model.{name}.lora_B.weight"] = [outputs, rank]
            if dora:
                shapes[f"base_model.model.{name}.lora_magnitude_vector"] = [outputs]
        config = partial(
            LoraConfig,
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=sorted(sizes),
            fan_in_fan_out=transposed(model),
            task_type=task_of(model),
            use_dora=dora,
            use_rslora=rslora,
        )
        return config, shapes
