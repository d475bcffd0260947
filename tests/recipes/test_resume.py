"""A run that is stopped, killed or finished, and taken up again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import entries, refused

import tiny
from instructrec.errors import InputError
from instructrec.recipes.tune import Interrupted
from instructrec.recipes.watch import UNSEEN, Watcher
from instructrec.training import checkpoint


def signalled(monkeypatch: pytest.MonkeyPatch, at: int, *numbers: int) -> None:
    """This process gets the signals while step `at` runs."""
    from instructrec.training import loop

    step = loop.Training._step

    def send(self: Any, number: int) -> Any:
        entry = step(self, number)
        for signal_number in numbers if number + 1 == at else ():
            os.kill(os.getpid(), signal_number)
        return entry

    monkeypatch.setattr(loop.Training, "_step", send)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("at", [3, 4])  # 4: the look that is due then is made up for
def test_a_signal_stops_with_a_checkpoint_and_resuming_equals_straight(
    quick: Any, tmp_path: Path, number: int, code: int, at: int
) -> None:
    settings = {"lora": {"dropout": 0.1}, "epochs": 2.5, "eval_every": 4, "accumulation": 3, "batch_rows": 1}
    straight = quick(out=tmp_path / "straight", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        signalled(patch, at, number)
        quick(**settings)
    where = tmp_path / "run" / "checkpoints"
    text = f"stopped by {signal.Signals(number).name}; step {at} of {straight.steps} is in {where}, go on with --resume"
    assert (str(caught.value), caught.value.exit_code) == (text, code)
    assert "run.json" not in os.listdir(tmp_path / "run")
    torch.manual_seed(at)
    result = quick(resume=True, **settings)
    assert (result.steps, result.best_step) == (straight.steps, straight.best_step)
    for file in ("adapter_model.safetensors", f"checkpoints/step-{result.steps}/optimizer.safetensors", "split.json"):
        assert (result.folder / file).read_bytes() == (straight.folder / file).read_bytes(), file
    assert _figures(result.folder) == _figures(straight.folder)


def test_a_second_signal_stops_at_once(quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch, 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(eval_every=100, save_steps=2)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1, 2, 3]
    monkeypatch.undo()
    verified: list[Path] = []
    verify = checkpoint.verify
    monkeypatch.setattr(checkpoint, "verify", lambda path: (verified.append(path), verify(path)))
    assert quick(eval_every=100, save_steps=2, resume=True).steps == 7
    assert verified == [tmp_path / "run" / "checkpoints" / "step-2"]  # large files: once is enough
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_each_look_leaves_a_checkpoint_and_the_best_is_remembered(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 9.0, 2: 2.0, 4: 4.0, 6: 3.0, 7: 3.0}
    looked = lambda self, step: {name: {"loss": losses[step]} for name in ("seen", UNSEEN)}  # noqa: E731
    monkeypatch.setattr(Watcher, "look", looked)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        signalled(patch, 5, signal.SIGTERM, signal.SIGINT)
        quick(eval_every=2)
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-2", "step-4"]
    result = quick(eval_every=2, resume=True)
    assert (result.best_step, result.steps) == (2, 7)


def _figures(folder: Path) -> list[Any]:
    dropped = ("seconds", "tokens_per_second")
    return [{key: value for key, value in entry.items() if key not in dropped} for entry in entries(folder)]


def test_resuming_another_run_lists_each_difference(quick: Any, table: Path, tmp_path: Path) -> None:
    quick(max_steps=2)
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("Please upper it\tred\tRED", "Please upper it\tred\tROT"), encoding="utf-8")
    message = refused(quick, resume=True, max_steps=2, seed=5, lora={"rank": 4, "target": "q_proj"}, method="lora")
    lines = message.splitlines()
    assert lines[0] == "resume: this is another run:"
    assert [line.split(":")[0].strip() for line in lines[1:-1] + lines[-1:]] == [
        f"data.{table}", "settings.lora.rank", "settings.lora.target", "settings.seed",
    ]  # fmt: skip
    assert "  settings.lora.rank: was 16, is 4" in lines and "  settings.seed: was 1, is 5" in lines


def test_resuming_with_other_rows_to_watch_is_refused(quick: Any) -> None:
    watch = [{"instruction": "Say lamp", "output": "LAMP"}]
    quick(max_steps=2, validation=watch)
    message = refused(quick, resume=True, max_steps=2, validation=[{"instruction": "Say lamp", "output": "Lamp"}])
    assert message.splitlines()[1].startswith("  validation.<memory>: was '")


def test_resuming_on_another_backbone_is_refused(quick: Any, tmp_path: Path) -> None:
    model = tiny.folder("qwen", tmp_path / "model")
    quick(max_steps=2, model=str(model))
    tiny.folder("qwen", model, seed=3)
    message = refused(quick, resume=True, max_steps=2, model=str(model))
    assert message.splitlines()[1].startswith("  backbone.fingerprint: was '") and len(message.splitlines()) == 2


def test_a_damaged_checkpoint_is_named_before_it_is_read(quick: Any, tmp_path: Path) -> None:
    result = quick(max_steps=2)
    file = result.folder / "checkpoints" / "step-2" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    want = f"{file}: sha256 differs from the manifest, the checkpoint is damaged"
    assert refused(quick, resume=True, max_steps=2) == want


@pytest.mark.parametrize("early", [False, True])
def test_a_finished_run_is_not_touched_by_resuming(
    quick: Any, table: Path, early: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with open(table, "a", encoding="utf-8") as handle:
        handle.write("Please upper it\tred\n")
    if early:
        looked = lambda self, step: {name: {"loss": 1.0 + step} for name in ("seen", UNSEEN)}  # noqa: E731
        monkeypatch.setattr(Watcher, "look", looked)
    settings = {"eval_every": 1, "patience": 2, "on_bad_row": "skip", "max_steps": 4}
    first = quick(**settings)
    assert (first.steps == 3) == early
    for name in ("report.json", "report.html", "README.md"):
        (first.folder / name).write_text("evaluated")
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    capsys.readouterr()
    assert quick(resume=True, **settings) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
    text = f"Nothing left to do: {first.folder} is a finished run ({first.stopped})"
    assert " ".join(capsys.readouterr().out.split()).endswith(text)


def test_a_run_killed_while_it_wrote_its_report_is_finished_by_resuming(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructrec.evaluation import card

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(card, "write_card", killed)
        quick(max_steps=2)
    assert not (tmp_path / "run" / "run.json").exists()
    assert quick(max_steps=2, resume=True).steps == 2
    assert (tmp_path / "run" / "README.md").is_file() and (tmp_path / "run" / "run.json").is_file()


def test_signal_handlers_are_put_back(quick: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    quick(max_steps=1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_died_before_its_first_checkpoint_starts_over(quick: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n', encoding="utf-8")
    quick(max_steps=2)
    assert [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"loss"' in line and '"look"' not in line
    ] == [1, 2]
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "settings.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run2" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds files already"):
        quick(max_steps=2, out=tmp_path / "run2")
