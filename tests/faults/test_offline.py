"""Offline and silent: training, evaluation and answering open no socket and tell nobody; `--offline` fails at once where
a hub or an index would be needed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from watch import CHANGES

SILENCED = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
SWITCHES = (*SILENCED, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DISABLE_TELEMETRY")

# Four commands in a fresh process, under a hook from the first import on, with no switch set that forbids a network.
CHILD = """\
import io, json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from watch import hook
events = []
folder = Path.cwd()
sys.addaudithook(hook(folder / "none", folder, events))
from instructrec.cli import main
rows, model, out = sys.argv[2:]
quick = ["--precision", "fp32"]
codes = [main(["check", rows, "--model", model])]
codes.append(main(["tune", rows, "--model", model, "--out", out, "--max-steps", "2", *quick]))
codes.append(main(["evaluate", out, rows, *quick]))
codes.append(main(["run", out, "Say red.", "--max-new-tokens", "2", *quick]))
sys.stdin = io.StringIO("Say red.\\n/reset\\nSay hot.\\n")
codes.append(main(["chat", out, "--max-new-tokens", "2", *quick]))
seen = list(events)
import socket
socket.socket().close()
from huggingface_hub import constants
report = {"codes": codes, "events": seen, "control": events[len(seen):], "silent": constants.HF_HUB_DISABLE_TELEMETRY}
report["open"] = sorted(name for name in sys.modules if name.partition(".")[0] in ("wandb", "mlflow", "comet_ml", "posthog"))
Path("report.json").write_text(json.dumps(report))
"""


def free(environment: dict[str, str]) -> dict[str, str]:
    """The environment without any switch of the hub library."""
    return {name: value for name, value in environment.items() if name not in SWITCHES}


def test_nothing_is_asked_of_a_network(tmp_path: Path, rows: Path, tiny_folder: Any) -> None:
    arguments = [str(Path(__file__).parent), str(rows), str(tiny_folder("qwen")), str(tmp_path / "run")]
    environment = free(dict(os.environ)) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["codes"] == [0, 0, 0, 0, 0], result.stderr
    # TensorBoard puts the name of the machine into its file's name; matplotlib asks for fonts, the report for its commit.
    harmless = ("socket.gethostname ", "subprocess.Popen ('git', ", "subprocess.Popen ('fc-list', ")
    asked = [event for event in report["events"] if not event.startswith((*harmless, "write ", *CHANGES))]
    assert asked == [] == report["open"]
    assert report["silent"] and any(event.startswith("socket.") for event in report["control"])


def test_telemetry_is_off_unless_it_is_asked_for() -> None:
    code = f"import os, instructrec; print([os.environ.get(name) for name in {SILENCED}])"
    for given, want in ({}, "['1', '1']"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "['0', '1']"):
        environment = free(dict(os.environ)) | given
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == want


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("someone/some-model", "'someone/some-model' looks like a hub id, and the network is switched off"),
        ("smollm2-135m", "'smollm2-135m' is not in {cache} yet and --offline forbids fetching it"),
    ],
)
def test_offline_fails_at_once(
    command: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, reason: str
) -> None:
    for name in ("inference.assistant", "recipes.measure", "recipes.tune", "recipes.check"):  # before the clock starts
        importlib.import_module(f"instructrec.{name}")
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a socket was made"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    cache = tmp_path / "cache" / "instructrec" / "models" / model
    message = f"model: {reason.format(cache=cache)}"
    from huggingface_hub import snapshot_download  # noqa: F401  imported before the clock starts

    for arguments in (
        ("run", model, "hello", "--offline"),
        ("tune", str(rows), "--model", model, "--offline", "--out", "run", "--held-out", "none"),
        ("evaluate", model, str(rows), "--offline"),
        ("check", str(rows), "--model", model, "--offline"),
    ):
        started = time.process_time()
        ended = command(*arguments)
        assert time.process_time() - started < 1.0
        assert ended.code == 3 and ended.err.splitlines()[-1] == message
    assert not Path("run").exists() and not Path("runs").exists()
