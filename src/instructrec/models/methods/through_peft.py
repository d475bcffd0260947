"""What the methods that PEFT computes have in common: PEFT's files, several adapters on a model, merging.

PEFT is never handed an adapter's configuration as it was found: it would act on whatever stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...errors import InputError, did_you_mean
from ..kinds import kind_of
from ..loading import json_object, read_tensors
from ..structure import is_conv1d, linear_layers
from . import Method

# Of an adapter_config.json, what concerns only where the adapter came from, or is found out anew.
ABOUT = (
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "fan_in_fan_out",
)
Described = tuple[Callable[..., Any], dict[str, list[int]]]


class Unfit(Exception):
    """Why an adapter does not belong to a backbone."""


class ThroughPeft(Method):
    """A method that PEFT computes."""

    mergeable = True
    several = True

    def described(self, model: Any, file: Path) -> Described:
        """What makes the configuration of the adapter that `file` describes, and name -> shape of its weights.

        Raises InputError for a field that changes what the weights mean in a way this version does not know, or makes
        PEFT import modules and run regular expressions that the file names. Raises Unfit for layers that the model
        lacks.
        """
        raise NotImplementedError

    def save(self, model: Any, folder: Path, base: str) -> None:
        """adapter_config.json and adapter_model.safetensors."""
        config = model.peft_config[model.active_adapter]
        config.base_model_name_or_path = base
        # "auto" would ask a hub whether the vocabulary has grown.
        model.save_pretrained(folder, save_embedding_layers=False)
        for card in folder.rglob("README.md"):  # PEFT writes cards of its own; the run folder has a better one
            card.unlink()

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The backbone with the adapter from `folder`. Raises InputError, the model being untouched, when the adapter
        is damaged, does not fit, or is of a kind that this version does not know."""
        from peft import get_peft_model, set_peft_model_state_dict

        file = folder / "adapter_model.safetensors"
        try:
            config, shapes = self.described(model, folder / "adapter_config.json")
            weights = read_tensors(file)
            check_shapes(weights, shapes)
        except Unfit as error:
            raise InputError(f"{folder}: the adapter does not fit this backbone: {error}") from error
        check_finite(weights, file)
        # Not PeftModel.from_pretrained: it acts on whatever the adapter's configuration says.
        tuned = get_peft_model(model, config(inference_mode=not trainable))
        set_peft_model_state_dict(tuned, weights)
        return tuned

    def add(self, model: Any, name: str, options: Mapping[str, Any], seed: int) -> None:
        """An adapter like the first one; what is random of it is drawn anew."""
        import torch

        torch.manual_seed(seed)
        _add(model, name, trainable=True)

    def load_more(self, model: Any, folder: Path, name: str, *, trainable: bool = False) -> None:
        """The adapter in `folder/name`. Raises InputError when it is missing, damaged or not like the first one."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        like = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = read_more(folder / name / "adapter_model.safetensors", like)
        _add(model, name, trainable=trainable)
        set_peft_model_state_dict(model, weights, adapter_name=name)

    @contextmanager
    def using(self, model: Any, weights: str) -> Iterator[Any]:
        """The model with another adapter, or with none."""
        if weights == "off":
            with self.disabled(model):
                yield model
            return
        first = model.active_adapter
        model.set_adapter(weights)
        try:
            yield model
        finally:
            model.set_adapter(first)

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        """The backbone alone."""
        with model.disable_adapter():
            yield model

    def merge(self, model: Any) -> Any:
        """The tuning folded into the weights in fp32; a model that holds no adapter (any more) is given back as it is.

        Raises InputError, before a weight is changed, when the adapter holds a non-finite value.
        """
        if not hasattr(model, "merge_and_unload"):
            return model
        try:
            for name, weight in model.named_parameters():
                if f".{model.active_adapter}" in name and not weight.isfinite().all():
                    raise ValueError(f"{name} holds a value that is not finite")
            return model.float().merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise InputError(f"the adapter can't be merged: {error}") from error


def fields_of(file: Path, kind: str, usual: Any, known: Collection[str], takes: str) -> dict[str, Any]:
    """The fields of an adapter_config.json of PEFT's type `kind`, of which only `known` ones differ from `usual`.

    usual: PEFT's configuration at its defaults.  takes: what this version takes, for the message.
    Raises InputError for any other.
    """
    given = json_object(file)
    if given.get("peft_type") != kind:
        name = {"LORA": "LoRA"}.get(kind, kind)
        raise InputError(f"{file}: peft_type: not {name} (got {given.get('peft_type')!r})")
    defaults = asdict(usual)
    for key, value in given.items():
        # JSON has no tuples and no sets, so a default is compared as it would be written.
        if key not in (*ABOUT, *known) and value not in (defaults.get(key), None, False, {}, []):
            raise InputError(f"{file}: {key}: this version takes {takes} only (got {short(value)})")
    return given


def sizes_of(model: Any, file: Path, target: Any) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of the linear layers that an adapter's `target_modules` means."""
    layers = linear_layers(model)
    if target == "all-linear":
        return layers
    found: dict[str, tuple[int, int]] = {}
    for part in names_in(target, file, "target_modules"):
        hits = {name: size for name, size in layers.items() if name == part or name.endswith(f".{part}")}
        if not hits:
            known = {name.rpartition(".")[2] for name in layers}
            raise Unfit(f"no linear layer is called '{part[:200]}', {did_you_mean(part[:200], known)}")
        found |= hits
    return found


def names_in(value: Any, file: Path, key: str) -> list[str]:
    """A list of names of layers, each once. Raises InputError for anything else, patterns too."""
    if not (isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)):
        raise InputError(f"{file}: {key}: not names of layers (got {short(value)}, want a list of names)")
    return list(dict.fromkeys(value))


def named_layers(model: Any, setting: str, text: str) -> list[str]:
    """Names of layers that a user gave separated by commas. Raises InputError for one that no linear layer has."""
    known = {name.rpartition(".")[2] for name in linear_layers(model)}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:  # PEFT only minds when nothing at all matches: one typo among several would pass
        if name not in known:
            raise InputError(f"{setting}: no linear layer is called '{name}', {did_you_mean(name, known)}")
    return names


def transposed(model: Any) -> bool:
    """True where linear layers store their weight transposed."""
    return any(is_conv1d(module) for module in model.modules())


def task_of(model: Any) -> str | None:
    """PEFT's name of what a model is for, None where it needs none."""
    kind = kind_of(model)
    return kind.task if kind.chooses or hasattr(model, "prepare_inputs_for_generation") else None


@contextmanager
def uncast(model: Any) -> Iterator[None]:
    """PEFT's layers in `model` (or None) take what comes in in its own type: under autocast a cast would be undone.
    PEFT's `disable_input_dtype_casting` asks every layer for a switch that IA3's layers lack."""
    modules = model.modules() if model is not None else ()
    layers = [module for module in modules if getattr(module, "cast_input_dtype_enabled", False)]
    try:
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True


def check_shapes(weights: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Raises Unfit unless the weights have just these names and shapes."""
    for name in sorted(weights.keys() ^ shapes.keys())[:1]:
        raise Unfit(f"it {'does not know' if name in weights else 'also wants'} {name}")
    for name, weight in weights.items():
        if list(weight.shape) != shapes[name]:
            raise Unfit(f"{name} (got {list(weight.shape)}, want {shapes[name]})")


def check_finite(weights: Mapping[str, Any], file: Path) -> None:
    """Raises InputError for a weight that holds NaN or infinity."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(f"{file}: {name} holds a value that is not finite")


def read_more(file: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a further adapter, which has the names and shapes of the first one. Raises InputError."""
    if not file.is_file():
        raise InputError(f"{file}: missing, the reading plan needs it")
    weights = read_tensors(file)
    for key in sorted(weights.keys() ^ like.keys())[:1]:
        raise InputError(f"{file}: {key}: {'not known here' if key in weights else 'missing'}")
    for key, weight in weights.items():
        if weight.shape != like[key].shape or not weight.isfinite().all():
            raise InputError(f"{file}: {key}: of another shape than the first adapter's, or not finite")
    return weights


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _add(model: Any, name: str, *, trainable: bool) -> None:
    """An adapter of the first one's shape, with gradients as it has them."""
    model.add_adapter(name, replace(model.peft_config[model.active_adapter], inference_mode=not trainable))
    if trainable:
        model.set_requires_grad([name], requires_grad=True)
