"""What every loading of weights from a folder needs: no noise, no random numbers in place of missing weights, and one
line about what is wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..errors import InputError

# What loading a folder that is not what it says can raise, besides a bug of ours.
BROKEN = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
# `from_pretrained` fills what is missing or of another shape with random numbers and only warns: see check_complete.
LOADING: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


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
    """The first line of an error that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
