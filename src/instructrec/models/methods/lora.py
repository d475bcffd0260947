"""LoRA: W x + (alpha / rank) B A x with W frozen, A random, B zero at the start.

Reference: Hu et al., arXiv 2106.09685. Differs from it as common today: on all linear layers of the blocks instead of
the query and value projections only. Through PEFT, in PEFT's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, did_you_mean
from ..loading import BROKEN, first_line
from . import Method


class Lora(Method):
    """Low-rank updates beside the linear layers."""

    name = "lora"
    reference = "arXiv 2106.09685"
    learning_rate = 1e-3
    mergeable = True

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The model wrapped by PEFT. Raises InputError for a target that names no linear layer."""
        import torch
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=options["rank"],
            lora_alpha=options["alpha"],
            lora_dropout=options["dropout"],
            target_modules=self._targets(model, options["target"]),
            fan_in_fan_out=any(_is_conv1d(module) for module in model.modules()),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)  # A is drawn at random
        return get_peft_model(model, config)

    def _targets(self, model: Any, target: str) -> str | list[str]:
        if target == "all-linear":
            return target
        import torch

        head = model.get_output_embeddings()
        known = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if (isinstance(module, torch.nn.Linear) or _is_conv1d(module)) and module is not head
        }
        names = [name.strip() for name in target.split(",") if name.strip()]
        for name in names:  # PEFT only minds when nothing at all matches: one typo among several would pass
            if name not in known:
                raise InputError(f"lora.target: no linear layer is called '{name}', {did_you_mean(name, known)}")
        if not names:
            raise InputError("lora.target: empty (want all-linear or names of linear layers)")
        return names

    def save(self, model: Any, folder: Path, base: str) -> None:
        """adapter_config.json and adapter_model.safetensors."""
        config = model.peft_config[model.active_adapter]
        config.base_model_name_or_path = base
        # "auto" would ask a hub whether the vocabulary has grown.
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT writes a card of its own; the run folder has a better one

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The backbone with the adapter from `folder`. Raises InputError when it is damaged or does not fit."""
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors.torch import load_file

        file = folder / "adapter_model.safetensors"
        try:
            weights = load_file(file)
            tuned = PeftModel.from_pretrained(model, folder, is_trainable=trainable, local_files_only=True)
        except BROKEN as error:
            raise InputError(f"{folder}: the adapter does not fit this backbone: {first_line(error)}") from error
        # PEFT only warns of weights that are missing or left over, and leaves the missing ones at random.
        for name in sorted(weights.keys() ^ get_peft_model_state_dict(tuned, save_embedding_layers=False).keys())[:1]:
            which = "does not know" if name in weights else "also wants"
            raise InputError(f"{folder}: the adapter does not fit this backbone: it {which} {name}")
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise InputError(f"{file}: {name} holds a value that is not finite")
        return tuned

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        """The backbone alone."""
        with model.disable_adapter():
            yield model

    def merge(self, model: Any) -> Any:
        """The update added to the weights in fp32. Raises InputError when the adapter holds a non-finite value."""
        try:
            return model.float().merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise InputError(f"the adapter can't be merged: {error}") from error


def _is_conv1d(module: Any) -> bool:
    # GPT-2's linear layers: the weight is stored transposed.
    return type(module).__name__ == "Conv1D"
