"""Prompt tuning: learned embeddings in front of every row.

Reference: Lester et al., arXiv 2104.08691. The backbone reads the embeddings once a call instead of once a row: rows
that come after them in a causal model see the same keys and values. In PEFT's files.

P learned positions, D width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .soft import SoftMethod


class PromptTuning(SoftMethod):
    """P embeddings, [P, D]."""

    name = "prompt_tuning"
    reference = "arXiv 2104.08691"
    learning_rate = 1e-1
    shardable = False  # its embeddings go through the layers before torch brings the weights together
    peft_type = "PROMPT_TUNING"
    # Where PEFT took its first values from makes no difference to what it saves.
    fields = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")

    def make(self, model: Any, shape: Any, options: Mapping[str, Any], seed: int) -> Any:
        """Random embeddings, as far apart as those of the vocabulary."""
        from ..soft import Embeddings

        return Embeddings(drawn(model, options["length"], seed))

    def config(self, prompt: Any) -> Any:
        """PEFT's configuration."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=prompt.length,
            token_dim=prompt.saved().shape[1],
            num_transformer_submodules=1,
        )

    def read_in(self, folder: Path, given: dict[str, Any], saved: Any, shape: Any, trainable: bool) -> Any:
        """The embeddings."""
        from ..soft import Embeddings

        return Embeddings(saved)


def drawn(model: Any, length: int, seed: int) -> Any:
    """Random embeddings [P, D] of the spread of the model's own."""
    import torch

    from ..soft import common_ids, embed

    some = embed(model, common_ids(model, 256, 0), 256)
    return torch.randn(length, some.shape[1], generator=torch.Generator().manual_seed(seed)) * some.std().cpu()
