"""Loading a pretrained decoder from a local folder, a GGUF file, a built-in name or a hub id.

Weights are only ever read from safetensors or GGUF; code that a model folder brings is never run.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import EnvironmentFault, InputError, did_you_mean
from ..files import cache_dir, new_directory, read_json, sha256_of, write_json
from . import embedded
from .loading import BROKEN, LOADING, check_complete, first_line, quiet

# Keys of a config.json that make a library load or run something of the folder's choosing.
_REFUSED_KEYS = ("_attn_implementation_internal", "_experts_implementation_internal", "model_file", "custom_pipelines")
# The same keys in their public form may name an implementation of the library's own, never one to fetch ("org/name").
_IMPLEMENTATIONS = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Backbone:
    """A pretrained model with its tokenizer.

    model: the `transformers` model.  name: as the user gave it.  folder: where its files lie (a hub id stays an id).
    max_positions: tokens it can attend to.  stop_ids: ids its own generation settings end an answer with.
    """

    model: Any
    tokenizer: Any
    name: str
    folder: str
    max_positions: int
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def pad_id(self) -> int:
        """Id used to fill up a batch; masked by position, never by value, so EOS will do."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def default_length(self) -> int:
        """Tokens a row may have when the user did not say."""
        return min(self.max_positions, _DEFAULT_LENGTH)


def compute_dtype(precision: str) -> torch.dtype:
    """bf16 or fp32; `auto` takes bf16 where the processor multiplies it natively (about twice as fast)."""
    if precision == "auto":
        return torch.bfloat16 if _has_bf16() else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return any(f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def device() -> torch.device:
    """Where models run: the first CUDA device, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find(name: str, offline: bool = False) -> str:
    """The folder (or hub id) that holds the model called `name`; fetches and converts where that is needed.

    Raises InputError when nothing is there, EnvironmentFault when the network is needed and forbidden.
    """
    if name in embedded.MODELS:
        return str(embedded.fetch(name, offline))
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model: no such file: {name}")
        return str(_converted(path))
    if path.is_dir():
        _check_folder(path)
        return str(path)
    if name.count("/") == 1 and not name.startswith(("/", ".")) and not path.parent.exists():
        if offline or os.environ.get("HF_HUB_OFFLINE") == "1":
            raise EnvironmentFault(f"model: '{name}' looks like a hub id, and the network is switched off")
        return name
    raise InputError(
        f"model: '{name}' is no built-in model, folder or GGUF file ({did_you_mean(name, embedded.MODELS)})"
    )


def load(name: str, *, dtype: torch.dtype, offline: bool = False) -> Backbone:
    """A decoder with its tokenizer, weights in `dtype`, in evaluation mode, on `device()`.

    Raises InputError for a model that is no decoder, has no safetensors, lacks weights, or whose tokenizer does not
    fit.
    """
    where, config, tokenizer = _config_and_tokenizer(name, offline)
    with quiet():
        from transformers import AutoModelForCausalLM

        given = _given(where)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, config=config, dtype=dtype, use_safetensors=True, **LOADING, **given
            )
        except BROKEN as error:
            raise InputError(f"model: '{name}' could not be loaded: {first_line(error)}") from error
    model, info = loaded
    check_complete(info, f"model: '{name}'")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(f"model: '{name}': the tokenizer has {len(tokenizer):,} ids, the embedding only {rows:,} rows")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    ends = model.generation_config.eos_token_id
    stop = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    notes = ("auto_map in config.json was ignored: the model type is built in",) if _has_auto_map(where) else ()
    # Sampling is ours to decide: settings a folder brings must not change a greedy answer.
    model.generation_config = type(model.generation_config)(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=list(stop)
    )
    return Backbone(model.to(device()).eval(), tokenizer, name, where, int(positions or 2**30), stop, notes)


def load_tokenizer(name: str, *, offline: bool = False) -> tuple[Any, int]:
    """Tokenizer of a model, and the default number of tokens a row may have, without loading weights."""
    _, config, tokenizer = _config_and_tokenizer(name, offline)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or _DEFAULT_LENGTH
    return tokenizer, min(int(positions), _DEFAULT_LENGTH)


def _config_and_tokenizer(name: str, offline: bool) -> tuple[str, Any, Any]:
    """Where a decoder lies, its configuration and its fast tokenizer. Raises InputError for anything else."""
    where = find(name, offline)
    with quiet():
        from transformers import AutoConfig, AutoTokenizer

        given = _given(where)
        try:
            config = AutoConfig.from_pretrained(where, **given)
            _check_decoder(config, name)
            tokenizer = AutoTokenizer.from_pretrained(where, **given)
        except BROKEN as error:
            raise InputError(f"model: '{name}' could not be loaded: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"model: '{name}' has no tokenizer.json (a fast tokenizer is needed)")
    return where, config, tokenizer


def _given(where: str) -> dict[str, Any]:
    """What every `from_pretrained` is told."""
    # False, not left away: the library would ask on the terminal whether to run the folder's code.
    return {"local_files_only": Path(where).is_dir(), "trust_remote_code": False}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file into `folder`, dequantised to bfloat16 safetensors.

    Loading a GGUF takes some 15 s each time, the converted folder under one. bfloat16 has the exponent range of
    float32 and a rounding step far below that of the 4-bit weights it holds.
    """
    # The conversion's own bar can only be kept away by taking its stream.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        try:
            # Without dequantize=True the dense model stays flagged as quantised and refuses to be saved.
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except BROKEN as error:
            raise InputError(f"model: {gguf.name} could not be read as GGUF: {first_line(error)}") from error
        model.config._name_or_path = ""
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _drop_added_tokens(folder / "tokenizer.json", model.get_input_embeddings().weight.shape[0])


def _drop_added_tokens(file: Path, rows: int) -> None:
    """Take out added tokens for which the embedding has no row: the library gives each byte-level vocabulary a
    `<|endoftext|>`, also Llama-3's, which has none."""
    state = read_json(file)
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    write_json(file, state)


def _converted(gguf: Path) -> Path:
    folder = cache_dir() / "models" / f"gguf-{sha256_of(gguf)[:16]}"
    if not (folder / "model.safetensors").is_file():
        with new_directory(folder) as temporary:
            convert_gguf(gguf.resolve(), temporary)
    return folder


def _has_auto_map(where: str) -> bool:
    config = Path(where, "config.json")
    return config.is_file() and "auto_map" in read_json(config)


def _check_folder(folder: Path) -> None:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"model: {folder}: no config.json, this is not a model folder")
    try:
        config = read_json(config_file)
    except ValueError as error:
        raise InputError(f"{config_file}: not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{config_file}: model_type: missing, this is not a model's configuration")
    for key, value in _entries(config):
        if key in _REFUSED_KEYS or (key in _IMPLEMENTATIONS and "/" in str(value)):
            raise InputError(f"{config_file}: {key}: refused, this key can make a library load code")
    if "auto_map" in config:
        from transformers import CONFIG_MAPPING

        if config["model_type"] not in CONFIG_MAPPING:
            raise InputError(f"{config_file}: auto_map: refused, this model needs code from its folder")
    if not any(folder.glob("*.safetensors")):
        found = [path.name for path in folder.glob("*.bin")]
        raise InputError(
            f"model: {folder}: no safetensors weights" + (f" (found {found[0]}, refused)" if found else "")
        )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a configuration and of those nested in it (a picture model's text part)."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _check_decoder(config: Any, name: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model: '{name}' is an encoder-decoder ({config.model_type}); this version tunes decoders")
    # BERT and its kin have a causal class too, but read to both sides unless their configuration says otherwise.
    two_sided = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or two_sided:
        raise InputError(f"model: '{name}' is no decoder ({config.model_type}); this version tunes decoders")
    # Answers are made with a cache of keys and values; a recurrent model keeps another state.
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if "past_key_values" not in inspect.signature(model_class.forward).parameters:
        raise InputError(
            f"model: '{name}' keeps no key/value cache ({config.model_type}); this version tunes decoders with one"
        )
