"""The command line in this process, with the rooms behind its verbs replaced by recorders."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from instructrec import cli


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run `instructrec` in an empty folder: `command("tune", "rows.tsv", stdin="...")`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces what the verbs call; the arguments of the last call are kept by the name of the function."""
    kept: dict[str, Any] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(*positional: Any, **keyword: Any) -> None:
            kept[name] = (positional, keyword)

        return record

    class Assistant:
        loaded = types.SimpleNamespace(notes=())

        def __init__(self, target: str, **options: Any) -> None:
            kept["assistant"] = (target, options)
            kept["chats"] = []

        def stream(self, instruction: str, input: str = "") -> Iterator[str]:
            kept["stream"] = (instruction, input)
            yield from ("Bon", "jour", "\x1b[31m")

        def chat(self, messages: list[tuple[str, str]]) -> Iterator[str]:
            kept["chats"].append(list(messages))
            yield "a"
            if messages[-1][1] == "interrupt":
                raise KeyboardInterrupt
            yield "b"

    rooms = {
        "recipes.check": {"check": recorder("check")},
        "recipes.tune": {"tune_files": recorder("tune")},
        "recipes.measure": {"evaluate_files": recorder("evaluate")},
        "inference.assistant": {"Assistant": Assistant},
    }
    for name, members in rooms.items():
        module = types.ModuleType(f"instructrec.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return kept
