"""What every loading of weights from a folder needs: nothing in the folder is run or unpickled, no noise, no random
numbers in place of missing weights, and one line about what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..files import read_json

# What loading a folder that is not what it says can raise, besides a bug of ours.
BROKEN = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    TypeError,
    AttributeError,
    ImportError,
    struct.error,  # a GGUF file that is cut short
    SafetensorError,
    StrictDataclassError,
)
# `from_pretrained` fills what is missing or of another shape with random numbers and only warns: see check_complete.
LOADING: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}

# Keys of a config.json that make a library load or run something of the folder's choosing.
_REFUSED_KEYS = (
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "model_file",
    "custom_pipelines",
    "transformers_weights",  # may name a pickle
)
# The same keys in their public form may name an implementation of the library's own, never one to fetch ("org/name").
_IMPLEMENTATIONS = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")
_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_MAX_HEADER = 16 << 20  # bytes of a JSON text; a tensor takes about a hundred
_LFS = b"version "  # how the text starts that Git leaves where a large file was not fetched
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTHS = ("vocab_size", "hidden_size", "intermediate_size", "n_embd", "n_inner", "head_dim")
_FLOATS = ("F64", "F32", "F16", "BF16")


def check_folder(folder: Path) -> dict[str, Any]:
    """The configuration of a model folder, after making sure that loading it runs no code and opens no pickle.

    Raises InputError naming the file and what is wrong with it.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"model: {folder}: no config.json, this is not a model folder")
    config = _json(config_file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{config_file}: model_type: missing, this is not a model's configuration")
    for key, value in _entries(config):
        if (key in _REFUSED_KEYS and value is not None) or (key in _IMPLEMENTATIONS and "/" in str(value)):
            raise InputError(f"{config_file}: {key}: refused, this key can make a library load code")
        if key == "quantization_config" and value:  # some of its methods fetch code to compute with
            raise InputError(f"{config_file}: {key}: refused, the weights have to be bf16, fp16 or fp32")
    if "auto_map" in config:
        from transformers import CONFIG_MAPPING

        if config["model_type"] not in CONFIG_MAPPING:
            raise InputError(f"{config_file}: auto_map: refused, this model needs code from its folder")
    if (folder / _ADAPTER).exists():  # the library would load it too, and say nothing
        raise InputError(f"model: {folder}: holds an adapter beside the model ({_ADAPTER}); take one or the other")
    if not any(folder.glob("*.safetensors")):
        found = [path.name for path in folder.glob("*.bin")]
        raise InputError(
            f"model: {folder}: no safetensors weights" + (f" (found {found[0]}, refused)" if found else "")
        )
    files = _weight_files(folder)
    tensors = sum(len(tensor_types(file)) for file in files)
    _check_sizes(config_file, config, tensors, sum(file.stat().st_size for file in files))
    return config


def _check_sizes(config_file: Path, config: dict[str, Any], tensors: int, size: int) -> None:
    """Raises InputError for sizes that the weights cannot have: the library would make room for them first."""
    for key, value in _entries(config):
        most = tensors if key in _LAYERS else size if key in _WIDTHS else None
        if most is not None and isinstance(value, int) and value > most:
            raise InputError(
                f"{config_file}: {key}: more than the weights can have (got {value:,}, want at most {most:,})"
            )


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors of a model folder, read from the headers of its files."""
    return {name for file in _weight_files(folder) for name in tensor_types(file)}


def check_numbers(model: Any, folder: Path) -> None:
    """Raises InputError when a weight is kept as something else than floating-point numbers: the library would turn
    the bytes of one kind of number into another without a word."""
    names = {name for name, _ in model.named_parameters()}
    for file in _weight_files(folder):
        for name, kind in tensor_types(file).items():
            if name in names:
                _check_float(file, name, kind)


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError naming the file when it holds none."""
    value = _json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value


def _json(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if (size := file.stat().st_size) > _MAX_HEADER:
        raise InputError(f"{file}: too large (got {size:,} bytes, want at most {_MAX_HEADER:,})")
    try:
        return read_json(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {first_line(error)}") from error


def read_tensors(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file of floating-point weights. Raises InputError naming the file and the tensor."""
    for name, kind in tensor_types(file).items():
        _check_float(file, name, kind)
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except BROKEN as error:
        raise InputError(f"{file}: not safetensors: {first_line(error)}") from error


def tensor_types(file: Path) -> dict[str, str]:
    """Name -> type (`F32`) of the tensors of a safetensors file, all that its header says being checked; weights are
    not read. Raises InputError naming the file and the reason."""
    if not file.is_file():
        other = next(iter(sorted(file.parent.glob("*.bin"))), None)
        raise InputError(f"{file}: no such file" + (f" (found {other.name}, refused)" if other else ""))
    size = file.stat().st_size
    with open(file, "rb") as handle:
        start = handle.read(8)
        length = int.from_bytes(start, "little")
        if start == _LFS:
            raise InputError(f"{file}: a Git LFS pointer and not the weights (`git lfs pull` fetches them)")
        if len(start) < 8 or length > size - 8:
            raise InputError(
                f"{file}: cut short, or not safetensors (got {size:,} bytes, want {8 + length:,} for the header alone)"
            )
        if length > _MAX_HEADER:
            raise InputError(f"{file}: the header is too long (got {length:,} bytes, want at most {_MAX_HEADER:,})")
        header = handle.read(length)
    try:
        json.loads(header, object_pairs_hook=_without_repeats)
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (*BROKEN, RecursionError) as error:
        raise InputError(f"{file}: not safetensors: {first_line(error)}") from error


def _check_float(file: Path, name: str, kind: str) -> None:
    if kind not in _FLOATS:
        raise InputError(f"{file}: {name}: not a weight (got numbers of type {kind}, want floating-point)")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two entries of one name, the library would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: the one, or those that the index names.

    Raises InputError for an index that leads out of the folder or to something else: the library follows it, and
    unpickles what does not end in .safetensors.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        raise InputError(f"model: {folder}: neither {_WEIGHTS} nor {_INDEX}")
    places = json_object(index).get("weight_map")
    if not (isinstance(places, dict) and places and all(isinstance(name, str) for name in places.values())):
        raise InputError(f"{index}: weight_map: want the name of a file for each weight")
    names = sorted(set(places.values()))
    for name in names:
        if not name.endswith(".safetensors") or {"/", "\\", os.sep} & set(name) or not (folder / name).is_file():
            raise InputError(f"{index}: weight_map: '{name}' is no safetensors file of this folder")
    return [folder / name for name in names]


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a configuration and of those nested in it (a picture model's text part)."""
    rest: list[Any] = [config]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield from value.items()
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def check_complete(info: Mapping[str, Any], what: str) -> None:
    """Raises InputError when weights are missing or of another shape than config.json says.

    info: what `from_pretrained(**LOADING)` tells.
    """
    for key, got, want in sorted(info["mismatched_keys"])[:1]:
        raise InputError(f"{what}: the weights do not fit config.json: {key} (got {list(got)}, want {list(want)})")
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{what}: the weights lack {missing[0]}{more}")


def first_line(error: Exception) -> str:
    """The first line of an error that says something, at most 200 characters of it."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 200 else line[:199] + "…"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading shows one bar of ours or nothing; the library's own bars and advice are switched off."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
