"""Prefix-Tuning: learned keys and values in front of every row, in all layers.

Reference: Li and Liang, arXiv 2101.00190. Differs from it: keys and values are trained themselves, as in P-Tuning v2
(arXiv 2110.07602), not through a network; they start from those of real text, which makes the network unnecessary. In
PEFT's files.

P learned positions, L layers, G key/value heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from .soft import CONFIG, SoftMethod

_SPREAD = 0.02  # standard deviation of init=random


class PrefixTuning(SoftMethod):
    """P keys and values a layer: 2 P L G E parameters, [P, 2 L G E]."""

    name = "prefix_tuning"
    reference = "arXiv 2101.00190"
    learning_rate = 3e-2
    peft_type = "PREFIX_TUNING"
    # How PEFT trained a prefix makes no difference to what it saves.
    fields = ("encoder_hidden_size", "prefix_projection", "init_weights")

    def make(self, model: Any, shape: Any, options: Mapping[str, Any], seed: int) -> Any:
        """Random keys and values. Raises InputError for a model whose layers have keys of different shapes."""
        import torch

        from ..soft import KeysAndValues

        _, groups, _ = _same(shape)
        drawn = torch.randn(options["length"], self.width(model, shape), generator=torch.Generator().manual_seed(seed))
        return KeysAndValues(drawn * _SPREAD, shape[0], groups)

    def width(self, model: Any, shape: Any) -> int:
        """2 L G E."""
        layers, groups, width = _same(shape)
        return 2 * layers * groups * width

    def config(self, prompt: Any) -> Any:
        """PEFT's configuration."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=prompt.length,
            token_dim=prompt.embeddings.shape[1] // (2 * prompt.layers),
            num_attention_heads=prompt.groups,
            num_layers=prompt.layers,
            num_transformer_submodules=1,
        )

    def read_in(self, folder: Path, given: dict[str, Any], saved: Any, shape: Any, trainable: bool) -> Any:
        """The prefix. Raises InputError where the configuration divides the numbers in another way."""
        from ..soft import KeysAndValues

        layers, groups, width = shape
        for key, want in (("num_layers", layers), ("num_attention_heads", groups), ("token_dim", groups * width)):
            if given.get(key) not in (None, want):
                raise InputError(
                    f"{folder / CONFIG}: {key}: does not fit this backbone (got {given[key]!r:.60}, want {want})"
                )
        return KeysAndValues(saved, layers, groups)


def _same(shape: Any) -> tuple[int, int, int]:
    if shape is None:
        raise InputError("method: prefix_tuning needs keys and values of one shape in all layers (want prompt_tuning)")
    layers, groups, width = shape
    return layers, groups, width
