"""Checkpoints: a directory that is complete or absent, safetensors and JSON only.

`step-N/` holds the trained weights (in the method's own format), `optimizer.safetensors`, `state.json` and, written
last, `manifest.json` with the sha256 of every other file. The directory is filled under a temporary name, fsynced and
renamed: one that is called `step-N` and is not whole was damaged later. `step-N.old` is what a new `step-N` replaces;
it is there only when a crash came between.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..errors import InputError, InstructRecError
from ..files import discard, disk_faults, new_directory, read_json, sha256_of, write_json
from .sharding import is_cut, like

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)(\.old)?")
_LEFTOVER = re.compile(r"\.step-\d+(\.old)?\.\w+")  # of a save or a deletion that was killed


def save(
    folder: Path,
    step: int,
    *,
    write_weights: Callable[[Path], None],
    optimizer: Any,
    names: list[str],
    state: Mapping,
    generators: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write `folder/step-N`, all of it or nothing. names: of the optimizer's parameters, in its order.
    generators: states of the random generators of each process; default: this one's.

    Raises EnvironmentFault when the disk refuses; the checkpoints before it are then untouched.
    """
    final = folder / f"step-{step}"
    safe = f" (needs about {_bytes(optimizer):,} bytes); {_newest(folder)}"
    with disk_faults(f"checkpoint: {final} could not be written", safe):
        _sweep(folder)  # else the leftovers of saves that were killed could fill the disk before one succeeds
        with new_directory(final) as temporary:
            write_weights(temporary)
            random_tensors = _random_tensors(generators or [generator_states()])
            save_file(_optimizer_tensors(optimizer, names) | random_tensors, temporary / OPTIMIZER)
            write_json(temporary / STATE, {"step": step, "python_random": _python_random(), **state})
            paths = sorted(path for path in temporary.rglob("*") if path.is_file())
            files = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in paths}
            write_json(temporary / MANIFEST, {"step": step, "files": files})
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; leftovers of an interrupted save are not among them. None is opened: see `verify`."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [(int(name[1]), not name[2], path) for path in paths if (name := _NAME.fullmatch(path.name))]
    return [path for *_, path in sorted(found) if path.is_dir()]


def verify(checkpoint: Path) -> None:
    """Raises InputError naming the file when one differs from the manifest, EnvironmentFault when it can't be read."""
    with disk_faults(f"checkpoint: {checkpoint} could not be read"):
        for name, digest in _manifest(checkpoint).items():
            path = checkpoint / name
            if not path.is_file():
                raise InputError(f"{path}: missing, the checkpoint is damaged")
            if sha256_of(path) != digest:
                raise InputError(f"{path}: sha256 differs from the manifest, the checkpoint is damaged")


def _manifest(checkpoint: Path) -> dict[str, str]:
    """File name -> sha256."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: missing, the checkpoint is damaged")
    try:
        manifest = read_json(path)
        step, files = manifest["step"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        step, files = None, {}
    name = _NAME.fullmatch(checkpoint.name)
    whole = name is not None and str(step) == name[1] and files.keys() >= {OPTIMIZER, STATE}
    if not whole or any(Path(file).is_absolute() or ".." in Path(file).parts for file in files):
        raise InputError(f"{path}: not the manifest of this checkpoint, which is damaged")
    return files


def newest_valid(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint that is whole, and why each newer one was passed over. Raises InputError if none is."""
    reasons: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        try:
            verify(checkpoint)
        except InstructRecError as error:
            reasons.append(str(error))
        else:
            return checkpoint, reasons
    lines = "".join(f"\n  {reason}" for reason in reasons)
    raise InputError(f"resume: {folder} holds no complete checkpoint" + (f":{lines}" if lines else ""))


def keep_only(folder: Path, steps: set[int]) -> None:
    """Delete checkpoints of other steps, and what saves and deletions that were killed have left.

    Raises EnvironmentFault when the disk refuses.
    """
    kept = {f"step-{step}" for step in steps}
    with disk_faults(f"checkpoint: what is no longer needed in {folder} could not be deleted"):
        _sweep(folder)
        found = checkpoints(folder)
        for path in found:
            replaced = path.suffix == ".old" and path.with_suffix("") in found
            if path.name.removesuffix(".old") not in kept or replaced:
                discard(path)


def _sweep(folder: Path) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def restore(checkpoint: Path, optimizer: Any, names: list[str], rank: int = 0) -> dict[str, Any]:
    """Put optimizer and random generators back as they were in process `rank`; returns `state.json`.

    Weights are the caller's part, and so is `verify`: it has to come before the weights are read.
    """
    tensors = load_file(checkpoint / OPTIMIZER)
    state = read_json(checkpoint / STATE)
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
            if is_cut(parameter):
                moments = {
                    key: like(value, parameter) for key, value in optimizer.state[parameter].items() if value.ndim
                }
                optimizer.state[parameter] |= moments
    own = {name: tensors.get(_of_process(f"random/{name}", rank)) for name in ("torch", "cuda")}
    if own["torch"] is None:  # fewer processes have written it
        torch.manual_seed(state["step"] * 1_000_003 + rank)
    else:
        torch.set_rng_state(own["torch"])
    if torch.cuda.is_available() and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"])
    version, internal, gauss = state["python_random"]
    random.setstate((version, tuple(internal), gauss))
    return state


def _newest(folder: Path) -> str:
    """How an error names what is safe."""
    try:
        found = checkpoints(folder)
    except OSError:
        return "those before it are untouched"
    return f"the newest complete one is {found[-1].name}" if found else "there is no complete one before it"


def _bytes(optimizer: Any) -> int:
    """About what a checkpoint takes on disk: the trained parameters and their moments."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _optimizer_tensors(optimizer: Any, names: list[str]) -> dict[str, torch.Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"optimizer/{name}/{key}": value.detach().cpu().contiguous().clone()
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def generator_states() -> dict[str, str]:
    """States of this process's random generators, as hexadecimal text that it can send to the one that saves."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: state.numpy().tobytes().hex() for name, state in states.items()}


def _random_tensors(generators: Sequence[Mapping[str, str]]) -> dict[str, torch.Tensor]:
    return {
        _of_process(f"random/{name}", rank): torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
        for rank, states in enumerate(generators)
        for name, state in states.items()
    }


def _of_process(name: str, rank: int) -> str:
    return f"{name}/{rank}" if rank else name


def _python_random() -> list[Any]:
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]
