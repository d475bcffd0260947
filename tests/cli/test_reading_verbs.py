"""Reading plans on the command line: what is shown, refused and warned of."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import instructrec
from instructrec.config import ExportSettings

Command = Callable[..., Any]
FP32 = ("--precision", "fp32")


def test_config_shows_the_plan_and_where_it_comes_from(command: Command) -> None:
    Path("run.yaml").write_text("strokes: [1, 2,3]\ndeep: on\n")
    ended = command("config", "show", "run.yaml", "slots=4", "--memory", "sink+last", "--json")
    assert ended.code == 0
    shown = json.loads(ended.out)
    names = ("strokes", "prior", "stroke_adapters", "deep", "slots", "memory", "direction", "mix")
    assert {name: (shown[name]["value"], shown[name]["origin"]) for name in names} == {
        "strokes": ("1,2,3", "run.yaml:1"),
        "prior": ("tuned", "default"),
        "stroke_adapters": ("shared", "default"),
        "deep": (True, "run.yaml:2"),
        "slots": (4, "command line"),
        "memory": ("sink+last", "command line"),
        "direction": ("causal", "default"),
        "mix": ("concat", "default"),
    }
    table = command("config", "show", "--strokes", "2").out
    assert any(line.split() == ["strokes", "2", "command", "line"] for line in table.splitlines())


def test_what_is_no_plan_is_refused_with_its_line(command: Command) -> None:
    want = "a number such as 2, or several such as 1,2,3"
    Path("run.yaml").write_text("strokes: [1, two]\ndirection: casual\nslots: -1\n")
    ended = command("tune", "run.yaml", "rows.tsv", "--strokes", "two")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "run.yaml:2: direction: unknown value (got casual, want causal or bidirectional)",
        "run.yaml:3: slots: out of range (got -1, want a whole number from 0 to 256)",
        f"command line: strokes: not the right kind (got two, want {want})",
    ]
    ended = command("tune", "run.yaml", "rows.tsv", "--direction", "causal", "--slots", "0")
    assert ended.err.splitlines() == [f"run.yaml:1: strokes: not the right kind (got a list, want {want})"]
    ended = command("tune", "rows.tsv", "--strokes", "9")
    assert (ended.code, ended.err.splitlines()) == (2, ["strokes: got 9, want numbers from 1 to 8"])
    ended = command("tune", "rows.tsv", "--stroke", "2")
    assert (ended.code, ended.err.splitlines()) == (2, ["tune: --stroke: no such option, did you mean '--strokes'?"])


@pytest.mark.parametrize("verb", ["run", "evaluate"])
def test_a_dial_out_of_range_is_refused_before_a_model_is_loaded(command: Command, verb: str) -> None:
    Path("rows.jsonl").write_text('{"instruction": "Say hot", "output": "cold"}\n')
    what = "Say hot" if verb == "run" else "rows.jsonl"
    ended = command(verb, "no/such/model", what, "--strokes", "9")
    assert (ended.code, ended.err.splitlines()[-1]) == (2, "strokes: got 9, want a number from 1 to 8")
    ended = command(verb, "no/such/model", what, "--strokes", "0")
    line = "command line: strokes: out of range (got 0, want a whole number from 1 upwards or none)"
    assert (ended.code, ended.err.splitlines()) == (2, [line])


def test_export_hands_over_what_was_typed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    module = types.ModuleType("instructrec.export.merged")
    vars(module)["export_run"] = lambda *given: kept.append(given)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert command("export", "runs/mine", "out", "--strokes", "1", "--precision", "fp32").code == 0
    assert kept == [("runs/mine", "out", ExportSettings(strokes=1, precision="fp32"))]
    ended = command("export", "runs/mine")
    assert ended.code == 2 and "FOLDER" in ended.err
    ended = command("export", "runs/mine", "out", "--slots", "3")
    assert ended.code == 2 and ended.err.startswith("export: --slots: no such option, ")


def test_run_and_chat_read_as_often_as_asked(command: Command, tiny_folder: Any, tmp_path: Path) -> None:
    folder = str(tiny_folder("qwen"))
    room = ("--max-new-tokens", "6", *FP32)
    twice = instructrec.Assistant(folder, strokes=2, max_new_tokens=6, precision="fp32")
    once = instructrec.Assistant(folder, max_new_tokens=6, precision="fp32")
    assert twice("Say hot") != once("Say hot")
    ended = command("run", folder, "Say hot", "--strokes", "2", *room)
    assert (ended.code, ended.out) == (0, twice("Say hot") + "\n") and "warning" not in ended.err
    rows = [{"instruction": f"Say {word}", "output": word} for word in ("hot", "cold", "red", "noon")]
    given = {"model": folder, "max_steps": 1, "held_out": "none", "tensorboard": False, "precision": "fp32"}
    run = instructrec.tune(rows, out=tmp_path / "run", strokes=2, **given).folder
    ended = command("run", str(run), "Say hot", "--strokes", "3", *room)
    assert ended.code == 0
    assert ended.err.count("warning: tuned to read 2 times, asked to read 3 times") == 1
    ended = command("run", str(run), "Say hot", *room)
    assert ended.code == 0 and "warning" not in ended.err
    ended = command("chat", str(run), "--strokes", "1", *room, stdin="Say hot\n")
    assert ended.code == 0 and ended.err.count("warning: tuned to read 2 times, asked to read once") == 1
    ended = command("export", str(run), str(tmp_path / "model"), *FP32)
    assert ended.code == 0 and (tmp_path / "model" / "chat_template.jinja").is_file()
    ended = command("export", str(run), str(tmp_path / "model"), *FP32)
    want = f"export: {tmp_path / 'model'} is there already (want a new folder)"
    assert (ended.code, ended.err.splitlines()) == (2, [want])
