"""Checkpoints: a directory that is complete or absent, safetensors and JSON only.

`step-N/` holds the trained weights (in the method's own format), `optimizer.safetensors`, `state.json` and, written
last, `manifest.json` with the sha256 of every other file.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..errors import InputError
from ..files import new_directory, read_json, sha256_of, write_json

MANIFEST = "manifest.json"


def save(
    folder: Path, step: int, *, write_weights: Callable[[Path], None], optimizer: Any, names: list[str], state: Mapping
) -> Path:
    """Write `folder/step-N`, all of it or nothing. names: of the optimizer's parameters, in its order."""
    final = folder / f"step-{step}"
    with new_directory(final) as temporary:
        write_weights(temporary)
        save_file(_optimizer_tensors(optimizer, names) | _random_tensors(), temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": step, "python_random": _python_random(), **state})
        files = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"step": step, "files": files})
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; leftovers of an interrupted save are not among them."""
    found = [path for path in folder.glob("step-*") if (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def verify(checkpoint: Path) -> None:
    """Raises InputError naming the file when one differs from the manifest."""
    for name, digest in read_json(checkpoint / MANIFEST)["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise InputError(f"{path}: missing, the checkpoint is damaged")
        if sha256_of(path) != digest:
            raise InputError(f"{path}: sha256 differs from the manifest, the checkpoint is damaged")


def keep_only(folder: Path, steps: set[int]) -> None:
    """Delete checkpoints of other steps, and the temporary folders of saves that were killed."""
    for path in checkpoints(folder):
        if int(path.name.removeprefix("step-")) not in steps:
            shutil.rmtree(path)
    for path in folder.iterdir():
        if re.fullmatch(r"\.step-\d+\.\w+", path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def restore(checkpoint: Path, optimizer: Any, names: list[str]) -> dict[str, Any]:
    """Put optimizer and random generators back as they were; returns `state.json`.

    Weights are the caller's part, and so is `verify`: it has to come before the weights are read.
    """
    tensors = load_file(checkpoint / "optimizer.safetensors")
    state = read_json(checkpoint / "state.json")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in zip(names, parameters, strict=True):
        prefix = f"optimizer/{name}/"
        kept = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if kept:
            # Moments live beside their parameter, and so does the step counter of a fused optimizer; of others it lives
            # on the processor.
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if value.ndim or fused else value for key, value in kept.items()
            }
    torch.set_rng_state(tensors["random/torch"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    version, internal, gauss = state["python_random"]
    random.setstate((version, tuple(internal), gauss))
    return state


def _optimizer_tensors(optimizer: Any, names: list[str]) -> dict[str, torch.Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"optimizer/{name}/{key}": value.detach().cpu().contiguous().clone()
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _random_tensors() -> dict[str, torch.Tensor]:
    tensors = {"random/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return tensors


def _python_random() -> list[Any]:
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]
