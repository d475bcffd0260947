"""LoRA: W x + (alpha / rank) B A x with W frozen, A random, B zero at the start.

Reference: Hu et al., arXiv 2106.09685. Differs from it as common today: on all linear layers of the blocks instead of
the query and value projections only. Through PEFT, in PEFT's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError, did_you_mean
from ..kinds import kind_of
from ..loading import json_object, read_tensors
from . import Method

# What is read of an adapter_config.json, or concerns only where the adapter came from.
_READ = (
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "fan_in_fan_out",
    "init_lora_weights",
)


class Lora(Method):
    """Low-rank updates beside the linear layers."""

    name = "lora"
    reference = "arXiv 2106.09685"
    learning_rate = 1e-3
    mergeable = True
    several = True
    kinds = ("decoder", "encoder-decoder")

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The model wrapped by PEFT. Raises InputError for a target that names no linear layer."""
        import torch
        from peft import LoraConfig, get_peft_model

        limit = max(min(size) for size in _linear_layers(model).values())
        if options["rank"] > limit:
            raise InputError(
                f"lora.rank: more than this model's layers have (got {options['rank']}, want at most {limit})"
            )
        config = LoraConfig(
            r=options["rank"],
            lora_alpha=options["alpha"],
            lora_dropout=options["dropout"],
            target_modules=self._targets(model, options["target"]),
            fan_in_fan_out=any(_is_conv1d(module) for module in model.modules()),
            task_type=kind_of(model).task,
        )
        torch.manual_seed(seed)  # A is drawn at random
        return get_peft_model(model, config)

    def _targets(self, model: Any, target: str) -> str | list[str]:
        if target == "all-linear":
            return target
        known = {name.rpartition(".")[2] for name in _linear_layers(model)}
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
        for card in folder.rglob("README.md"):  # PEFT writes cards of its own; the run folder has a better one
            card.unlink()

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The backbone with the adapter from `folder`. Raises InputError, the model being untouched, when the adapter
        is damaged, does not fit, or is of a kind that this version does not know."""
        from peft import get_peft_model, set_peft_model_state_dict

        file = folder / "adapter_model.safetensors"
        try:
            config, shapes = _described(model, folder / "adapter_config.json")
            weights = read_tensors(file)
            for name in sorted(weights.keys() ^ shapes.keys())[:1]:
                raise _Unfit(f"it {'does not know' if name in weights else 'also wants'} {name}")
            for name, weight in weights.items():
                if list(weight.shape) != shapes[name]:
                    raise _Unfit(f"{name} (got {list(weight.shape)}, want {shapes[name]})")
        except _Unfit as error:
            raise InputError(f"{folder}: the adapter does not fit this backbone: {error}") from error
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise InputError(f"{file}: {name} holds a value that is not finite")
        # Not PeftModel.from_pretrained: it acts on whatever the adapter's configuration says.
        tuned = get_peft_model(model, config(inference_mode=not trainable))
        set_peft_model_state_dict(tuned, weights)
        return tuned

    def add(self, model: Any, name: str, options: Mapping[str, Any], seed: int) -> None:
        """An adapter like the first one; A is drawn anew."""
        import torch

        torch.manual_seed(seed)
        _add(model, name, trainable=True)

    def load_more(self, model: Any, folder: Path, name: str, *, trainable: bool = False) -> None:
        """The adapter in `folder/name`. Raises InputError when it is missing, damaged or not like the first one."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        file = folder / name / "adapter_model.safetensors"
        if not file.is_file():
            raise InputError(f"{file}: missing, the reading plan needs it")
        weights, like = read_tensors(file), get_peft_model_state_dict(model, save_embedding_layers=False)
        for key in sorted(weights.keys() ^ like.keys())[:1]:
            raise InputError(f"{file}: {key}: {'not known here' if key in weights else 'missing'}")
        for key, weight in weights.items():
            if weight.shape != like[key].shape or not weight.isfinite().all():
                raise InputError(f"{file}: {key}: of another shape than the first adapter's, or not finite")
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
        """The update added to the weights in fp32. Raises InputError when the adapter holds a non-finite value."""
        try:
            return model.float().merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise InputError(f"the adapter can't be merged: {error}") from error


def _add(model: Any, name: str, *, trainable: bool) -> None:
    """An adapter of the first one's shape, with gradients as it has them."""
    model.add_adapter(name, replace(model.peft_config[model.active_adapter], inference_mode=not trainable))
    if trainable:
        model.set_requires_grad([name], requires_grad=True)


class _Unfit(Exception):
    """Why an adapter does not belong to a backbone."""


def _described(model: Any, file: Path) -> tuple[Callable[..., Any], dict[str, list[int]]]:
    """What makes the configuration of the adapter that `file` describes, and name -> shape of its weights.

    Raises InputError for anything but plain LoRA: fields of other kinds change what the weights mean, or make PEFT
    import modules and run regular expressions that the file names. Raises _Unfit for layers that the model lacks.
    """
    from peft import LoraConfig

    given = json_object(file)
    if given.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type: not LoRA (got {given.get('peft_type')!r})")
    usual = asdict(LoraConfig())
    for key, value in given.items():
        # JSON has no tuples and no sets, so a default is compared as it would be written.
        if key not in _READ and value not in (usual.get(key), None, False, {}, []):
            raise InputError(f"{file}: {key}: this version takes plain LoRA only (got {_short(value)})")
    if given.get("init_lora_weights", True) not in (True, False, "gaussian"):  # the others change the backbone too
        value = _short(given["init_lora_weights"])
        raise InputError(f"{file}: init_lora_weights: this version takes plain LoRA only (got {value})")
    sizes = _sizes(model, file, given.get("target_modules"))
    limit = max(min(size) for size in sizes.values())
    rank: Any = given.get("r")
    alpha: Any = given.get("lora_alpha")
    dropout: Any = given.get("lora_dropout", 0.0)
    if type(rank) is not int or not 1 <= rank <= limit:
        raise InputError(f"{file}: r: out of range (got {_short(rank)}, want a whole number from 1 to {limit})")
    if type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
        raise InputError(f"{file}: lora_alpha: out of range (got {_short(alpha)}, want a number above 0)")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise InputError(f"{file}: lora_dropout: out of range (got {_short(dropout)}, want a number from 0 to below 1)")
    shapes: dict[str, list[int]] = {}
    for name, (inputs, outputs) in sizes.items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = [rank, inputs]
        shapes[f"base_model.model.{name}.lora_B.weight"] = [outputs, rank]
    config = partial(
        LoraConfig,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(sizes),
        fan_in_fan_out=any(_is_conv1d(module) for module in model.modules()),
        task_type=kind_of(model).task,
    )
    return config, shapes


def _sizes(model: Any, file: Path, target: Any) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of the linear layers that an adapter's `target_modules` means."""
    layers = _linear_layers(model)
    if target == "all-linear":
        return layers
    if not (isinstance(target, list) and target and all(isinstance(name, str) and name for name in target)):
        raise InputError(f"{file}: target_modules: not names of layers (got {_short(target)}, want a list of names)")
    found: dict[str, tuple[int, int]] = {}
    for part in dict.fromkeys(target):
        hits = {name: size for name, size in layers.items() if name == part or name.endswith(f".{part}")}
        if not hits:
            short = {name.rpartition(".")[2] for name in layers}
            raise _Unfit(f"no linear layer is called '{part[:200]}', {did_you_mean(part[:200], short)}")
        found |= hits
    return found


def _linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of every linear layer but the output head."""
    import torch

    head = model.get_output_embeddings()
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif _is_conv1d(module):
            inputs, outputs = module.weight.shape
            found[name] = (inputs, outputs)
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _is_conv1d(module: Any) -> bool:
    # GPT-2's linear layers: the weight is stored transposed.
    return type(module).__name__ == "Conv1D"
