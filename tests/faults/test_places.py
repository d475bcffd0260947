"""FAULTS, input 28: odd clocks and places. All of it works, or says what is in the way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

import tiny
from instructrec import cli
from instructrec.models import backbone

QUICK = "--precision fp32 --max-steps 2 --held-out none --no-tensorboard".split()
ODD = "Prüfung 文件夹 (1)\n'x' --out"  # other letters, spaces, a line break, a quote, an option


def tuned(folder: Path, rows: Path, model: Path) -> Path:
    """A run of two steps in `folder`."""
    out = folder / "run"
    assert cli.main(["tune", str(rows), "--model", str(model), "--out", str(out), *QUICK]) == 0
    return out


def answers(target: Path) -> bool:
    return cli.main(["run", str(target), "Say red.", "--precision", "fp32", "--max-new-tokens", "2"]) == 0


def test_odd_names_of_folders_and_files(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    model = tiny.folder("qwen", folder / "mod ell\n字")
    file = rows.rename(folder / "zeilen\nfür 一.tsv")
    run = tuned(folder, file, model)
    assert json.loads((run / "run.json").read_text())["data"]["files"].keys() == {str(file)}
    assert answers(run) and answers(model)
    assert cli.main(["evaluate", str(run), str(file), "--precision", "fp32", "--arms", "tuned", "--training-rows"]) == 0
    assert (run / "report.html").is_file()
    assert cli.main(["check", str(file), "--model", str(model)]) == 0


def test_a_clock_that_jumps_back(tmp_path: Path, rows: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    run = tuned(tmp_path, rows, tiny_folder("qwen"))
    assert cli.main(["evaluate", str(run), str(rows), "--precision", "fp32", "--arms", "tuned", "--training-rows"]) == 0
    assert now[0] < time.monotonic() + 1e10 and answers(run)
    training = json.loads((run / "run.json").read_text())["training"]
    assert training["tokens_per_second"] > 0 and len(training["steps"]) == 2


def test_no_home(tmp_path: Path, rows: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "LANG", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    assert answers(tuned(tmp_path, rows, tiny_folder("qwen")))
    assert cli.main(["env"]) == 0 and cli.main(["models"]) == 0


def test_a_cache_that_can_not_be_written_to(
    tmp_path: Path, rows: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert answers(tuned(tmp_path, rows, tiny_folder("qwen")))  # needs no cache
    tiny_gguf.write(tmp_path / "tiny.gguf")
    capsys.readouterr()
    assert cli.main(["run", str(tmp_path / "tiny.gguf"), "hello"]) == 3
    cache = tmp_path / "file" / "instructrec"
    want = f"model: the cache {cache} can't be written to: Not a directory (XDG_CACHE_HOME names another)\n"
    assert capsys.readouterr().err == want


def test_a_filled_cache_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_gguf.write(tmp_path / "tiny.gguf")
    assert answers(tmp_path / "tiny.gguf")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    monkeypatch.setattr(os, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
    monkeypatch.setattr(backbone, "new_directory", lambda *_: pytest.fail("the cache was written to"))
    assert answers(tmp_path / "tiny.gguf")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
