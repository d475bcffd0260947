"""Trackers: what each keeps below the run folder, that none of them asks a network, and what is missing is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_files import entries, load, refused

from instructrec import cli
from instructrec.errors import EnvironmentFault
from instructrec.recipes import trackers
from instructrec.settings import checked

# A fresh process under a hook from the first import on; W&B's own program goes unseen by the hook, so whatever asks for a
# network is led to a server that only notes that it was asked.
CHILD = """\
import json, socket, sys, threading
from pathlib import Path
trap = socket.create_server(("127.0.0.1", 0))
asked = []
threading.Thread(target=lambda: [asked.append(trap.accept()[1][0]) for _ in range(1000)], daemon=True).start()
import os
address = f"http://127.0.0.1:{trap.getsockname()[1]}"
for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "WANDB_BASE_URL"):
    os.environ[name] = address
events = []
sys.addaudithook(lambda event, given: events.append(f"{event} {given!r:.150}") if event.startswith("socket.") else None)
from instructrec.cli import main
code = main(sys.argv[1:])
import atexit
Path("seen.json").write_text(json.dumps({"code": code, "events": events, "asked": asked}))
"""
# urllib3 looks whether the machine has IPv6; W&B talks to its own program through a file.
HARMLESS = ("socket.gethostname ", "socket.bind (<socket.socket fd=", "socket.__new__ ")


def test_wandb_and_mlflow_without_a_network(tmp_path: Path, table: Path, base: Path) -> None:
    given = [
        "tune", table, "--model", base, "--out", "run", "--precision", "fp32", "--threads", "1", "--max-steps", "3",
        "--batch-rows", "4", "--held-out-share", "0.2", "--report_to", "wandb,mlflow,tensorboard", "--offline",
    ]  # fmt: skip
    # MLflow keeps quiet of itself where it sees that it is tested.
    testing = ("WANDB", "MLFLOW", "PYTEST", "CI", "GITHUB")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(testing)}
    command = [sys.executable, "-c", CHILD, *map(str, given)]
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    seen = load(tmp_path / "seen.json")
    assert seen["code"] == 0 and seen["asked"] == [], result.stderr
    assert [event for event in seen["events"] if not event.startswith((*HARMLESS, "socket.connect "))] == []
    connections = [event for event in seen["events"] if event.startswith("socket.connect ")]
    assert connections and all("family=1," in event and "/socket')" in event for event in connections)
    binds = [event for event in seen["events"] if event.startswith("socket.bind ")]
    assert all("('::1', 0)" in event for event in binds)
    folder = tmp_path / "run"
    steps = [entry for entry in entries(folder) if "look" not in entry]
    (kept,) = folder.glob("mlruns/*/*/metrics/train/loss")
    losses = [line.split() for line in kept.read_text().splitlines()]
    assert [(int(step), float(f"{float(loss):.6g}")) for _, loss, step in losses] == [
        (entry["step"], entry["loss"]) for entry in steps
    ]
    assert (kept.parents[2] / "params" / "lora.rank").read_text() == "16"
    (wandb,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/loss" in wandb.read_bytes() and b"batch_tokens" in wandb.read_bytes()
    assert list(folder.glob("tensorboard/events*"))
    assert not list(tmp_path.glob("mlruns")) and not list(tmp_path.glob("wandb"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: None if module == name else object())
    assert cli.main(["tune", str(table), "--trackers", f"tensorboard,{name}", "--out", str(tmp_path / "run")]) == 3
    message = f"trackers: package '{name}' is missing (pip install 'instructrec[{name}]')\n"
    assert capsys.readouterr().err == message and not (tmp_path / "run").exists()


def test_a_server_is_refused_where_the_network_is_switched_off(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    assert refused(quick, trackers="wandb", offline=True) == (
        "trackers: wandb: WANDB_MODE is online, and the network is switched off (want offline)"
    )
    assert refused(quick, trackers="mlflow", offline=True) == (
        "trackers: mlflow: MLFLOW_TRACKING_URI is https://example.org, and the network is switched off"
    )


def test_a_tracker_that_cannot_begin_is_one_line(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    def start(self: Any) -> None:
        raise ValueError("No API key configured.\nmore")

    monkeypatch.setattr(tracking.WandBTracker, "start", start)
    with pytest.raises(EnvironmentFault) as caught:
        quick(trackers="wandb")
    assert str(caught.value) == "trackers: could not begin: ValueError: No API key configured."


def test_names_of_trackers(capsys: Any) -> None:
    from instructrec.config import TuneSettings

    for given, want in ((["wandb", "mlflow"], "wandb,mlflow"), (" wandb , wandb", "wandb"), ([], "none"), ("", "none")):
        assert TuneSettings(trackers=given).trackers == want
    assert checked(TuneSettings, {"tensorboard": False}).trackers == "none"
    assert capsys.readouterr().err == ""
    with pytest.raises(Exception) as caught:
        checked(TuneSettings, {"trackers": "wand"})
    wanted = "trackers: not the right kind (got 'wand', want none, or some of tensorboard, wandb, mlflow)"
    assert str(caught.value) == wanted


def test_settings_are_handed_to_a_tracker_flat() -> None:
    assert trackers._flat({"a": 1, "lora": {"rank": 2, "more": {"x": None}}}) == {
        "a": 1,
        "lora.rank": 2,
        "lora.more.x": None,
    }
