"""Loading a pretrained model from a local folder, a GGUF file, a built-in name or a hub id.

Weights are only ever read from safetensors or GGUF; code that a model folder brings is never run.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from ..errors import EnvironmentFault, InputError, did_you_mean, path_problem
from ..files import cache_dir, new_directory, read_json, sha256_of, write_json
from ..launch import on
from . import embedded
from .kinds import Kind, by_config
from .loading import BROKEN, LOADING, check_complete, check_folder, check_numbers, first_line, quiet

# What is fetched from a hub: nothing that could be run or unpickled, and no adapter.
_FETCHED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
# The parents of the hub's own errors; its HTTP client goes by another name in each major version.
_NETWORK = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
_TRUE = ("1", "ON", "YES", "TRUE")  # as the hub library reads its switches
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Backbone:
    """A pretrained model with its tokenizer.

    model: the `transformers` model.  kind: what differs from models of other kinds.
    name: as the user gave it.  folder: where its files lie.  max_positions: tokens it can attend to.
    stop_ids: ids its own generation settings end an answer with.
    """

    model: Any
    tokenizer: Any
    name: str
    folder: str
    max_positions: int
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Decoder, encoder-decoder …: all that differs between them."""
        return by_config(self.model.config)

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
    """Where models run: the CUDA device of this process, the processor where there is none or a launcher wants it."""
    return torch.device("cuda" if torch.cuda.is_available() and not on("ACCELERATE_USE_CPU") else "cpu")


def find(name: str, offline: bool = False) -> str:
    """The folder that holds the model called `name`; fetches and converts where that is needed.

    Raises InputError when nothing is there, EnvironmentFault when the network is needed and forbidden or fails.
    """
    if problem := path_problem(name):
        raise InputError(f"model: {problem}")
    if name in embedded.MODELS:
        return str(embedded.fetch(name, offline))
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model: no such file: {name}")
        return str(_converted(path))
    if path.is_dir():
        return str(path)
    if name.count("/") == 1 and not name.startswith(("/", ".")) and not path.parent.exists():
        return str(_fetched(name, offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE))
    raise InputError(
        f"model: '{name}' is no built-in model, folder or GGUF file ({did_you_mean(name, embedded.MODELS)})"
    )


def load(
    name: str,
    *,
    dtype: torch.dtype,
    offline: bool = False,
    place: torch.device | None = None,
    head: str = "auto",
    accepts: Callable[[Kind], None] = lambda kind: None,
) -> Backbone:
    """A model with its tokenizer, weights in `dtype`, in evaluation mode, on `device()` or at another `place`.

    head: by what a masked encoder answers.  accepts: asked before weights are read; may raise InputError.
    Raises InputError for a model of no kind that can be tuned, without safetensors, that lacks weights, or whose
    tokenizer does not fit.
    """
    where, config, tokenizer, notes = _config_and_tokenizer(name, offline, head)
    kind = by_config(config)
    accepts(kind)
    with quiet():
        import transformers

        given: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        try:
            named, more = kind.weights(config)
            auto: Any = getattr(transformers, named)
            loaded: Any = auto.from_pretrained(where, config=config, dtype=dtype, **LOADING, **given, **more)
        except BROKEN as error:
            raise InputError(f"model: '{name}' could not be loaded: {first_line(error)}") from error
    model, info = loaded
    check_complete(info, f"model: '{name}'")
    check_numbers(model, Path(where))
    kind.check_model(model, name)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(f"model: '{name}': the tokenizer has {len(tokenizer):,} ids, the embedding only {rows:,} rows")
    # Models that write nothing have no settings of generation.
    settings = getattr(model, "generation_config", None)
    ends = None if settings is None else settings.eos_token_id
    stop = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    # Since check_folder let it pass, the model type is one of the library's.
    mapped = getattr(config, "auto_map", None)
    notes += ("auto_map in config.json was ignored: the model type is built in",) if mapped else ()
    if settings is not None:
        # Sampling is ours to decide: settings a folder brings must not change a greedy answer.
        kept = {name: getattr(settings, name) for name in kind.kept}
        model.generation_config = type(settings)(pad_token_id=tokenizer.pad_token_id, eos_token_id=list(stop), **kept)
    positions = kind.positions(config, model) or 2**30
    return Backbone(model.to(place or device()).eval(), tokenizer, name, where, positions, stop, notes)


def load_tokenizer(name: str, *, offline: bool = False, head: str = "auto") -> tuple[Any, int, Kind]:
    """Tokenizer of a model, the default number of tokens a row may have, and its kind, without loading weights."""
    _, config, tokenizer, _ = _config_and_tokenizer(name, offline, head)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or _DEFAULT_LENGTH
    return tokenizer, min(int(positions), _DEFAULT_LENGTH), by_config(config)


def _config_and_tokenizer(name: str, offline: bool, head: str) -> tuple[str, Any, Any, tuple[str, ...]]:
    """Where a model lies, its configuration, its fast tokenizer, and notes. Raises InputError for one that can't be
    tuned."""
    where = find(name, offline)
    check_folder(Path(where))
    # False, not left away: the library would ask on the terminal whether to run the folder's code.
    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(where, **given)
            by_config(config).check(config, name)
            notes = by_config(config).settle(config, Path(where), head, name)
            auto = getattr(transformers, by_config(config).tokenizer(config, Path(where), name))
            tokenizer = auto.from_pretrained(where, **given)
        except BROKEN as error:
            raise InputError(f"model: '{name}' could not be loaded: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"model: '{name}' has no tokenizer.json (a fast tokenizer is needed)")
    by_config(config).check_tokenizer(tokenizer, name)
    return where, config, tokenizer, notes


def _fetched(name: str, offline: bool) -> Path:
    """The folder of a hub id in the hub library's cache, brought up to date unless `offline`."""
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=list(_FETCHED), local_files_only=offline))
    except HFValidationError as error:
        raise InputError(f"model: '{name}' is no hub id: {first_line(error)}") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(f"model: '{name}' is not on the hub, or not open to you") from error
    except _NETWORK as error:
        if offline:
            message = f"model: '{name}' looks like a hub id, and the network is switched off"
            raise EnvironmentFault(message) from error
        raise EnvironmentFault(f"model: '{name}' could not be fetched: {first_line(error)}") from error


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
            _check_gguf_kind(gguf)
            raise InputError(f"model: {gguf.name} could not be read as GGUF: {first_line(error)}") from error
        model.config._name_or_path = ""
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _drop_added_tokens(folder / "tokenizer.json", model.get_input_embeddings().weight.shape[0])


def _check_gguf_kind(gguf: Path) -> None:
    """Raises InputError where a file that can't be read holds no decoder."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except BROKEN:
        return
    if not (kind := by_config(config)).causal:
        raise InputError(
            f"model: {gguf.name} holds an {kind.name} ({config.model_type}); GGUF is read for decoders only"
        )


def _drop_added_tokens(file: Path, rows: int) -> None:
    """Take out added tokens for which the embedding has no row: the library gives each byte-level vocabulary a
    `<|endoftext|>`, also Llama-3's, which has none."""
    state = read_json(file)
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    write_json(file, state)


def _converted(gguf: Path) -> Path:
    folder = cache_dir() / "models" / f"gguf-{sha256_of(gguf)[:16]}"
    if not (folder / "model.safetensors").is_file():
        try:
            with new_directory(folder) as temporary:
                convert_gguf(gguf.resolve(), temporary)
        except OSError as error:
            raise EnvironmentFault(
                f"model: the cache {cache_dir()} can't be written to: {error.strerror} (XDG_CACHE_HOME names another)"
            ) from error
    return folder
