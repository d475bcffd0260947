"""Stopped and resumed equals straight through, bit by bit; and checkpoints that are not what they were."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import learning
import tiny
from instructrec import files
from instructrec.errors import EnvironmentFault, InputError
from instructrec.models.methods import METHODS
from instructrec.training import checkpoint
from instructrec.training.loop import Hooks
from instructrec.training.monitor import Monitor

LENGTHS = [4, 40, 12, 25, 7, 31, 20, 9, 11, 5, 16, 33]
PLAN = {"epochs": 2.5, "batch_rows": 1, "accumulation": 3, "schedule": "cosine", "seed": 3, "learning_rate": 5e-3}


def run_to(folder: Path, method: str, first: int, stop_at: int | None) -> tuple[Any, Any, list[Any]]:
    """Train from `first` (resuming `step-<first>`) up to `stop_at` or the end: model, training, log entries."""
    chosen = METHODS[method]
    options = learning.options_of(chosen) | {"dropout": 0.1}
    base = tiny.model("gpt2")
    for module in base.modules():  # the model's own dropout, for full tuning
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    model = chosen.load(base, folder / f"step-{first}", trainable=True) if first else chosen.attach(base, options, 0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    run = learning.training(model, learning.rows(LENGTHS, 290), learning.plan(**PLAN))
    monitor, entries = Monitor({}), []
    if first:
        state = checkpoint.restore(folder / f"step-{first}", run.optimizer.optimizer, run.names)
        assert state["step"] == first
        monitor.restore(state["monitor"])
        run.outcome.restore(state["outcome"])

    def save(step: int, state: dict[str, Any]) -> None:
        write = lambda target: chosen.save(model, target, "tiny")  # noqa: E731
        checkpoint.save(
            folder, step, write_weights=write, optimizer=run.optimizer.optimizer, names=run.names, state=state
        )

    reason = lambda: "stop" if len([e for e in entries if "loss" in e]) + first == stop_at else ""  # noqa: E731
    run.run(monitor, Hooks(log=entries.append, save=save, stop=reason), first)
    return model, run, entries


def comparable(entries: list[dict[str, Any]]) -> list[Any]:
    return [(entry["step"], entry["loss"], entry["grad_norm"], entry["learning_rate"]) for entry in entries]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resumed_equals_straight(method: str, stop: int, tmp_path: Path) -> None:
    straight, whole, want = run_to(tmp_path / "straight", method, 0, None)
    assert len(want) == 10
    _, before, head = run_to(tmp_path / "cut", method, 0, stop)
    assert before.outcome.stopped == "stop" and len(head) == stop
    torch.manual_seed(77)
    random.seed(77)
    resumed, after, tail = run_to(tmp_path / "cut", method, stop, None)
    assert comparable(head + tail) == comparable(want)
    assert before.outcome.row_log + after.outcome.row_log == whole.outcome.row_log
    assert learning.same(learning.weights_of(resumed), learning.weights_of(straight))
    assert after.outcome.tokens == whole.outcome.tokens
    assert after.outcome.supervised_tokens == whole.outcome.supervised_tokens
    one, other = (folder / "step-10" / "optimizer.safetensors" for folder in (tmp_path / "cut", tmp_path / "straight"))
    assert one.read_bytes() == other.read_bytes()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint of step 2, and the training it belongs to."""
    _, run, _ = run_to(tmp_path, "lora", 0, 2)
    return tmp_path / "step-2", run


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint.verify(folder)
    return str(caught.value)


def test_a_checkpoint_is_safetensors_and_json_only(saved: Any) -> None:
    folder, _ = saved
    names = ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.safetensors", "state.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == set(names) - {"manifest.json"}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"])
def test_one_bit_names_the_file(saved: Any, name: str) -> None:
    folder, _ = saved
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    assert refused(folder) == f"{folder / name}: sha256 differs from the manifest, the checkpoint is damaged"
    (folder / name).write_bytes(b"")
    assert refused(folder) == f"{folder / name}: sha256 differs from the manifest, the checkpoint is damaged"
    (folder / name).unlink()
    assert refused(folder) == f"{folder / name}: missing, the checkpoint is damaged"


def test_no_bit_of_the_manifest_can_flip_unseen(saved: Any) -> None:
    folder, _ = saved
    manifest = folder / "manifest.json"
    raw = manifest.read_bytes()
    own = f"{manifest}: not the manifest of this checkpoint, which is damaged"
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        manifest.write_bytes(flipped)
        assert refused(folder) == own or refused(folder).endswith(", the checkpoint is damaged"), place
    assert len(raw) > 300


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"step": 2, "files": []}', '{"step": 2, "files": {"state.json": ""}}', "[" * 100_000]
)
def test_a_manifest_that_is_none_is_named(saved: Any, text: str) -> None:
    folder, _ = saved
    (folder / "manifest.json").write_text(text)
    assert refused(folder) == f"{folder / 'manifest.json'}: not the manifest of this checkpoint, which is damaged"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_looks_at_nothing_outside(saved: Any, name: str) -> None:
    folder, _ = saved
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert refused(folder) == f"{folder / 'manifest.json'}: not the manifest of this checkpoint, which is damaged"


def test_a_checkpoint_of_another_step_is_refused(saved: Any) -> None:
    folder, _ = saved
    moved = folder.rename(folder.with_name("step-9"))
    assert refused(moved) == f"{moved / 'manifest.json'}: not the manifest of this checkpoint, which is damaged"


def test_files_in_folders_are_in_the_manifest(saved: Any) -> None:
    """PEFT gives an adapter that is not called "default" a folder of its own."""
    folder, run = saved

    def write(target: Path) -> None:
        (target / "other").mkdir()
        (target / "other" / "adapter_model.safetensors").write_bytes(b"weights")

    made = checkpoint.save(
        folder.parent, 3, write_weights=write, optimizer=run.optimizer.optimizer, names=run.names, state={}
    )
    checkpoint.verify(made)
    (made / "other" / "adapter_model.safetensors").write_bytes(b"Weights")
    where = made / "other" / "adapter_model.safetensors"
    assert refused(made) == f"{where}: sha256 differs from the manifest, the checkpoint is damaged"


def copies(folder: Path, *steps: int) -> list[Path]:
    """Copies of a checkpoint as those of other steps."""
    made = []
    for step in steps:
        made.append(folder.with_name(f"step-{step}"))
        shutil.copytree(folder, made[-1])
        manifest = json.loads((folder / "manifest.json").read_text())
        (made[-1] / "manifest.json").write_text(json.dumps(manifest | {"step": step}))
        checkpoint.verify(made[-1])
    return made


def test_the_newest_that_is_whole_and_why_not_the_newer_ones(saved: Any) -> None:
    folder, _ = saved
    parent = folder.parent
    four, six, eight, ten = copies(folder, 4, 6, 8, 10)
    assert checkpoint.newest_valid(parent) == (ten, [])
    (parent / ".step-12.x1y2").mkdir()
    raw = bytearray((ten / "state.json").read_bytes())
    raw[7] ^= 16
    (ten / "state.json").write_bytes(raw)
    (eight / "manifest.json").unlink()
    (six / "optimizer.safetensors").write_bytes(b"")
    reasons = [
        f"{ten / 'state.json'}: sha256 differs from the manifest, the checkpoint is damaged",
        f"{eight / 'manifest.json'}: missing, the checkpoint is damaged",
        f"{six / 'optimizer.safetensors'}: sha256 differs from the manifest, the checkpoint is damaged",
    ]
    assert checkpoint.newest_valid(parent) == (four, reasons)
    (four / "adapter_model.safetensors").unlink()
    (folder / "manifest.json").write_bytes(b"")
    reasons += [
        f"{four / 'adapter_model.safetensors'}: missing, the checkpoint is damaged",
        f"{folder / 'manifest.json'}: not the manifest of this checkpoint, which is damaged",
    ]
    with pytest.raises(InputError) as caught:
        checkpoint.newest_valid(parent)
    text = "\n".join([f"resume: {parent} holds no complete checkpoint:", *(f"  {reason}" for reason in reasons)])
    assert str(caught.value) == text


def test_without_any_checkpoint_there_is_no_newest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError) as caught:
            checkpoint.newest_valid(folder)
        assert str(caught.value) == f"resume: {folder} holds no complete checkpoint"


def test_one_that_was_set_aside_counts_until_its_successor_is_there(saved: Any) -> None:
    folder, _ = saved
    (four,) = copies(folder, 4)
    aside = four.rename(folder.with_name("step-4.old"))
    assert checkpoint.checkpoints(folder.parent) == [folder, aside]
    checkpoint.verify(aside)
    checkpoint.keep_only(folder.parent, {4})
    assert os.listdir(folder.parent) == ["step-4.old"]
    shutil.copytree(aside, four)
    assert checkpoint.checkpoints(folder.parent) == [aside, four]
    checkpoint.keep_only(folder.parent, {4})
    assert os.listdir(folder.parent) == ["step-4"]


def test_leftovers_are_no_checkpoints(saved: Any) -> None:
    folder, _ = saved
    parent = folder.parent
    (parent / ".step-9.x1y2").mkdir()
    (parent / ".step-9.x1y2" / "manifest.json").write_text("{}")
    (parent / "step-7").write_text("no folder")
    (parent / "step-8.orig").mkdir()
    (parent / ".step-2.gone").mkdir()
    assert checkpoint.checkpoints(parent) == [folder]


def test_checkpoints_come_in_the_order_of_steps_and_are_thinned_out(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "manifest.json").write_text("{}")
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-2", "step-9", "step-10"]
    checkpoint.keep_only(tmp_path, {10, 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-2"]


def test_what_a_killed_save_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        ".step-4.ab_12xyz",
        ".step-3.gone",
        ".step-3.old.gone",
        ".step-x.ab12",
        ".step-4",
        ".mine.d",
        "step-2",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text("half")
    (tmp_path / ".step-4.notes").write_text("mine")
    checkpoint.keep_only(tmp_path, {2})
    assert sorted(os.listdir(tmp_path)) == [".mine.d", ".step-4", ".step-4.notes", ".step-x.ab12", "step-2"]


def test_a_save_that_fails_leaves_the_old_one_and_nothing_else(saved: Any) -> None:
    folder, run = saved

    (folder.parent / ".step-3.ab12cd").mkdir()  # of a killed one: it must not be what fills the disk

    def disk_full(target: Path) -> None:
        assert sorted(os.listdir(folder.parent)) == [target.name, "step-2"]
        (target / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentFault, match="No space left"):
        checkpoint.save(
            folder.parent, 4, write_weights=disk_full, optimizer=run.optimizer.optimizer, names=run.names, state={}
        )
    assert os.listdir(folder.parent) == ["step-2"]
    checkpoint.verify(folder)


def test_a_kill_while_saving_leaves_the_old_one(saved: Any) -> None:
    folder, _ = saved
    child = (
        "import os, signal, sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from instructrec.training import checkpoint\n"
        "kill = lambda target: ((target / 'w').write_text('half'), os.kill(os.getpid(), signal.SIGKILL))\n"
        "checkpoint.save(Path(sys.argv[1]), 4, write_weights=kill, optimizer=N(param_groups=[], state={}), names=[], state={})\n"
    )
    ended = subprocess.run([sys.executable, "-c", child, str(folder.parent)], check=False)
    assert ended.returncode == -9
    assert len(os.listdir(folder.parent)) == 2  # and a leftover, which nobody takes for a checkpoint
    assert checkpoint.checkpoints(folder.parent) == [folder]
    checkpoint.verify(folder)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_files_have_the_mode_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "text", "x")
        with files.new_directory(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask  # it is as it was
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("text", "folder")]
    assert modes == [0o666 & ~mask, 0o777 & ~mask]
