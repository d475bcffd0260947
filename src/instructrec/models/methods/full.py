"""Full fine-tuning: every weight of the backbone is trained.

Reference: instruction tuning as in Wei et al., "Finetuned Language Models Are Zero-Shot Learners", arXiv 2109.01652.
Differs from it in size only. Weights are kept in fp32 (an update of a bf16 weight is often smaller than its rounding
step and would be lost); the products run in bf16 under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..kinds import kind_of
from ..loading import BROKEN, LOADING, check_complete, check_folder, check_numbers, first_line
from . import EVERY_KIND, Method


class Full(Method):
    """All weights; the run folder holds a whole model."""

    name = "full"
    reference = "arXiv 2109.01652"
    learning_rate = 5e-5
    switchable = False
    kinds = EVERY_KIND
    library = "transformers"

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """Every parameter is trained, in fp32, but those that the library makes anew when it loads (Marian's sines)."""
        model.float()
        made = model._keys_to_ignore_on_save or ()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in made)
        return model

    def save(self, model: Any, folder: Path, base: str) -> None:
        """A model folder that `from_pretrained` loads."""
        model.save_pretrained(folder)

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The backbone's weights replaced by those in `folder`. Raises InputError when they are damaged."""
        import transformers

        kind = check_folder(folder)["model_type"]
        if kind != model.config.model_type:
            raise InputError(f"{folder}: the tuned model is a {kind}, this backbone a {model.config.model_type}")
        given: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        dtype = model.dtype if not trainable else None
        try:
            named, more = kind_of(model).weights(model.config)
            auto: Any = getattr(transformers, named)
            loaded: Any = auto.from_pretrained(folder, dtype=dtype, **LOADING, **given, **more)
        except BROKEN as error:
            raise InputError(f"{folder}: the tuned model could not be loaded: {first_line(error)}") from error
        tuned, info = loaded
        check_complete(info, str(folder))
        check_numbers(tuned, folder)
        for name, weight in tuned.named_parameters():
            if not weight.isfinite().all():
                raise InputError(f"{folder}: {name} holds a value that is not finite")
        tuned = tuned.to(next(model.parameters()).device)
        if hasattr(model, "generation_config"):
            tuned.generation_config = model.generation_config
        if trainable:
            return self.attach(tuned, {}, 0)
        return tuned.eval()
