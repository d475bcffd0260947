"""FAULTS, input 22: names that are no names, for models, run folders, methods and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructrec import Assistant, evaluate, tune
from instructrec.errors import InputError
from instructrec.models.methods import METHODS

KNOWN = "is no built-in model, folder or GGUF file (known: gemma-3-270m, smollm2-135m)"
LONG = "x" * 300
IMPOSSIBLE = {
    "": "is empty (want a name or path)",
    "  ": "is empty (want a name or path)",
    LONG: "a name of 300 bytes is too long (want at most 255)",
    f"a/{LONG}/b": "a name of 300 bytes is too long (want at most 255)",
    "字" * 86: "a name of 258 bytes is too long (want at most 255)",
    "a\0b": "holds a NUL character",
    "a\udcff": "is not UTF-8 text",
}
UNKNOWN = ("../x", "..\\x", "/etc/x", "C:x", "a/../../b", "%2e%2e", "loop", "runs/../../../x")


@pytest.mark.parametrize("name", UNKNOWN)
def test_models_that_are_not_there(command: Any, rows: Path, name: str) -> None:
    Path("loop").symlink_to("loop")
    message = f"model: '{name}' {KNOWN}\n"
    assert command("run", name, "hello") == (2, message)
    ended = command("tune", str(rows), "--model", name, "--held-out", "none", "--out", "run")
    assert ended.code == 2 and ended.err.endswith(message) and not Path("run").exists()


@pytest.mark.parametrize("name", [".", "..", "/etc"])
def test_folders_that_are_no_models(command: Any, name: str) -> None:
    assert command("run", name, "hello") == (2, f"model: {name}: no config.json, this is not a model folder\n")


@pytest.mark.parametrize("name", ["a/..", "a/b--c", "-a/b", "a/b.git", "a/ b", "a/" + "b" * 200])
def test_names_that_no_hub_takes(command: Any, name: str) -> None:
    ended = command("run", "--", name, "hello")
    assert ended.code == 2 and ended.err.startswith(f"model: '{name}' is no hub id: ") and ended.err.count("\n") == 1


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("option", ["model", "out", "template", "validation"])
def test_names_that_no_file_can_have(command: Any, rows: Path, option: str, name: str) -> None:
    ended = command("tune", str(rows), f"--{option}", name)
    assert ended == (2, f"command line: {option}: {IMPOSSIBLE[name]}\n")
    with pytest.raises(InputError) as caught:
        tune(rows, **{option: name})
    if option != "validation":  # rows to read, from Python, with the words of the reader
        assert str(caught.value) == f"{option}: {IMPOSSIBLE[name]}"
    assert [path.name for path in Path().iterdir()] == ["rows.tsv"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_targets_that_no_file_can_be(command: Any, rows: Path, name: str) -> None:
    for arguments in (("run", name, "hello"), ("chat", name), ("evaluate", name, str(rows))):
        assert command(*arguments) == (2, f"model: {IMPOSSIBLE[name]}\n")
    for call in (lambda: Assistant(name), lambda: evaluate(name, rows)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == f"model: {IMPOSSIBLE[name]}"
    assert [path.name for path in Path().iterdir()] == ["rows.tsv"]


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("name", [*UNKNOWN, ".", "..", "", "__class__"])
def test_methods_that_are_not_there(command: Any, rows: Path, name: str) -> None:
    ended = command("tune", str(rows), "--method", name, "--out", "run")
    assert ended == (2, f"method: unknown tuning method '{name}', known: {', '.join(sorted(METHODS))}\n")


@pytest.mark.parametrize("name", [*UNKNOWN, ".", ".."])
def test_templates_that_are_not_there(command: Any, tiny_folder: Any, name: str) -> None:
    ended = command("run", str(tiny_folder("llama")), "hello", "--template", name)
    assert ended == (2, f"template: unknown template '{name}', known: alpaca, auto, cloze, model, plain\n")
