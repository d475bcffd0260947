"""What Prefix-Tuning, prompt tuning and P-tuning share as methods: attaching, first values, PEFT's files, switching.

P learned positions, D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from ...errors import InputError, did_you_mean
from ...prompts.template import Rendered
from ..loading import json_object, read_tensors
from . import Method

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MOST = 4096  # positions
# What is read of an adapter_config.json, or concerns only where the adapter came from or how it was trained.
_COMMON = (
    "peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode",
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules",
)  # fmt: skip


class SoftMethod(Method):
    """A method whose parameters stand in front of every row. peft_type: PEFT's name of it.  fields: what its
    adapter_config.json may have besides what all of them have."""

    identity_at_start = False
    several = True
    peft_type: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ()

    # -- what each method says for itself --------------------------------------------------------------------------

    def make(self, model: Any, shape: Any, options: Mapping[str, Any], seed: int) -> Any:
        """A prompt module with values that `begin` will replace. shape: (L, G, E) of the keys, or None where layers
        differ."""
        raise NotImplementedError

    def config(self, prompt: Any) -> Any:
        """PEFT's configuration of a prompt."""
        raise NotImplementedError

    def read_in(self, folder: Path, given: dict[str, Any], saved: Any, shape: Any, trainable: bool) -> Any:
        """The prompt module that `folder` holds. given: its configuration; saved: its `prompt_embeddings`."""
        raise NotImplementedError

    def width(self, model: Any, shape: Any) -> int:
        """Numbers that a position takes in PEFT's file: D, except for Prefix-Tuning."""
        return int(model.get_input_embeddings().weight.shape[1])

    # -- the method ------------------------------------------------------------------------------------------------

    def positions(self, options: Mapping[str, Any]) -> int:
        """P."""
        return int(options["length"])

    def positions_of(self, model: Any) -> int:
        """P."""
        from ..soft import prompts_of

        return prompts_of(model).length

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The backbone, frozen, with a trainable soft prompt that starts from words of its vocabulary until `start`
        knows better. Raises InputError for a backbone that can't have one."""
        from ..soft import FIRST, prompts_of

        if options["text"] and options["init"] != "text":
            raise InputError(f"{self.name}.text: needs {self.name}.init=text (got {self.name}.init={options['init']})")
        made = self._made(model, options, seed)
        model.requires_grad_(False)
        prompts_of(model).prompts[FIRST] = made
        return model

    def _made(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        from ..soft import common_ids, embed, probe

        length = options["length"]
        prompt = self.make(model, _shape(probe(model)), options, seed)
        prompt = prompt.to(model.get_input_embeddings().weight.device)
        if options["init"] != "random":
            prompt.begin(model, embed(model, common_ids(model, length, seed), length))
        return prompt

    def start(
        self, model: Any, options: Mapping[str, Any], seed: int, *, rows: Sequence[Rendered], tokenizer: Any
    ) -> None:
        """init=text: every prompt starts from the text that was given, or from what training rows ask, each prompt
        from other rows. Raises InputError for a text without a token."""
        from ..soft import embed, ids_of_rows, prompts_of

        if options["init"] != "text":
            return
        given = tokenizer(options["text"], add_special_tokens=False)["input_ids"] if options["text"] else []
        if options["text"] and not given:
            raise InputError(f"{self.name}.text: no token is left of it (got {options['text']!r})")
        for place, prompt in enumerate(prompts_of(model).by_name().values()):
            if ids := given or ids_of_rows(rows, prompt.length, seed + place):
                prompt.begin(model, embed(model, ids, prompt.length))

    def save(self, model: Any, folder: Path, base: str) -> None:
        """adapter_config.json and adapter_model.safetensors, for each prompt but the first in a folder of its name."""
        from safetensors.torch import save_file

        from ..soft import FIRST, prompts_of

        for name, prompt in prompts_of(model).by_name().items():
            home = folder if name == FIRST else folder / name
            home.mkdir(exist_ok=True)
            config = self.config(prompt)
            config.base_model_name_or_path = base
            config.inference_mode = True
            config.save_pretrained(str(home))
            save_file({"prompt_embeddings": _plain(prompt.saved())}, home / WEIGHTS, {"format": "pt"})
            self.save_more(prompt, home)

    def save_more(self, prompt: Any, folder: Path) -> None:
        """What training on needs and PEFT has no place for."""

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The backbone with the soft prompt from `folder`. Raises InputError, the model being untouched, when it is
        damaged, does not fit, or is of a kind that this version does not know."""
        from ..soft import FIRST

        prompt = self._opened(model, folder, trainable)
        model.requires_grad_(False)
        return self._planted(model, prompt, FIRST, trainable)

    def _opened(self, model: Any, folder: Path, trainable: bool) -> Any:
        from ..soft import probe

        given = self._checked_config(folder / CONFIG)
        shape = _shape(probe(model))
        file, length = folder / WEIGHTS, given["num_virtual_tokens"]
        weights = read_tensors(file)
        want = {"prompt_embeddings": [length, self.width(model, shape)]}
        check_tensors(file, weights, want)
        return self.read_in(folder, given, weights["prompt_embeddings"].float(), shape, trainable)

    def _planted(self, model: Any, prompt: Any, name: str, trainable: bool) -> Any:
        from ..soft import prompts_of

        prompt.requires_grad_(trainable)
        prompts_of(model).prompts[name] = prompt.to(model.get_input_embeddings().weight.device).train(model.training)
        return model

    def _checked_config(self, file: Path) -> dict[str, Any]:
        """The configuration in `file`. Raises InputError for fields that this version does not know."""
        given = json_object(file)
        if given.get("peft_type") != self.peft_type:
            raise InputError(f"{file}: peft_type: not {self.peft_type} (got {_short(given.get('peft_type'))})")
        for key, value in given.items():
            if key not in (*_COMMON, *self.fields) and value not in (None, False, {}, []):
                raise InputError(f"{file}: {key}: not known to this version (got {_short(value)})")
        whole(file, given, "num_virtual_tokens", _MOST)
        if given.get("num_transformer_submodules") not in (None, 1):
            raise InputError(f"{file}: num_transformer_submodules: not of a decoder (want 1)")
        return given

    def add(self, model: Any, name: str, options: Mapping[str, Any], seed: int) -> None:
        """A soft prompt more, of other words."""
        from ..soft import prompts_of

        prompts_of(model).prompts[name] = self._made(model, options, seed)

    def load_more(self, model: Any, folder: Path, name: str, *, trainable: bool = False) -> None:
        """The soft prompt in `folder/name`. Raises InputError as `load` does."""
        self._planted(model, self._opened(model, folder / name, trainable), name, trainable)

    @contextmanager
    def using(self, model: Any, weights: str) -> Iterator[Any]:
        """Another soft prompt in front, or none."""
        from ..soft import prompts_of

        held = prompts_of(model)
        if weights != "off" and weights not in held.prompts:
            raise InputError(f"method: no soft prompt is called '{weights}', {did_you_mean(weights, held.prompts)}")
        with held.using(None if weights == "off" else weights):
            yield model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        """The backbone alone."""
        with self.using(model, "off"):
            yield model


def check_tensors(file: Path, weights: Mapping[str, Any], want: Mapping[str, Sequence[int]]) -> None:
    """Raises InputError where a file holds other weights than those wanted (name -> shape), or one is not finite."""
    for name in sorted(weights.keys() ^ want.keys())[:1]:
        raise InputError(f"{file}: {name}: {'not known here' if name in weights else 'missing'}")
    for name, weight in weights.items():
        if list(weight.shape) != list(want[name]):
            raise InputError(
                f"{file}: {name}: does not fit this backbone (got {list(weight.shape)}, want {list(want[name])})"
            )
        if not weight.isfinite().all():
            raise InputError(f"{file}: {name} holds a value that is not finite")


def whole(file: Path, given: Mapping[str, Any], key: str, most: int) -> int:
    """A whole number of a configuration. Raises InputError for anything else."""
    value = given.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(f"{file}: {key}: out of range (got {_short(value)}, want a whole number from 1 to {most})")
    return value


def _shape(layers: Any) -> tuple[int, int, int] | None:
    """(L, G, E) of keys and values, or None where layers differ."""
    shapes = {tuple(part.shape) for pair in layers for part in pair}
    if len(shapes) > 1:
        return None
    _, groups, _, width = shapes.pop()
    return len(layers), groups, width


def _plain(tensor: Any) -> Any:
    return tensor.detach().cpu().contiguous().clone()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


__all__ = ["CONFIG", "SoftMethod", "check_tensors", "whole"]
