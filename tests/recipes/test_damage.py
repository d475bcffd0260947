"""Run folders after a crash or a bad disk, after the end, and between two processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import ended, start, wait_for
from run_files import refused
from stops import EXACT, STEPS, counted, damaged, figures, same_result, signalled

from instructrec import cli
from instructrec.errors import EnvironmentFault, InputError
from instructrec.inference.loading import open_target
from instructrec.recipes.runfolder import LOCK, Lock, RunFolder
from instructrec.recipes.tune import Interrupted
from instructrec.recipes.watch import UNSEEN, Watcher
from instructrec.training import checkpoint

# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_only_on_request(
    quick: Any, tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    where = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(checkpoint, "keep_only", lambda *_: None)
        signalled(patch, 10, signal.SIGTERM)
        quick(**EXACT)
    assert sorted(os.listdir(where)) == ["step-10", "step-4", "step-8"]
    reason = damaged(where / "step-10")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    advice = "; --resume=latest-valid goes on from the newest one that is whole"
    assert refused(quick, resume=True, **EXACT) == reason + advice
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    capsys.readouterr()
    with counted() as taken:
        quick(resume="latest-valid", **EXACT)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert said == [
        f"warning: {reason}",
        "warning: resume: going on from step-8, the newest checkpoint that is whole",
    ]
    assert taken == straight[1][8:]
    same_result(tmp_path / "run", straight[0].folder)


def test_a_damaged_best_checkpoint(quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    losses = {0: 9.0, 2: 1.0, 4: 4.0, 6: 3.0, 7: 3.5}
    looked = lambda self, step: {name: {"loss": losses[step]} for name in ("seen", UNSEEN)}  # noqa: E731
    monkeypatch.setattr(Watcher, "look", looked)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 5, signal.SIGTERM)
        quick(eval_every=2)
    where = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(where)) == ["step-2", "step-5"]
    reason = damaged(where / "step-2")
    assert refused(quick, eval_every=2, resume=True) == reason
    capsys.readouterr()
    result = quick(eval_every=2, resume="latest-valid")
    said = f"warning: {reason}; it was the best so far: the best of the steps to come is kept instead\n"
    assert said in capsys.readouterr().err
    assert (result.best_step, sorted(os.listdir(where))) == (6, ["step-6", "step-7"])


def test_a_result_that_was_damaged_on_the_way_is_not_handed_out(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructrec.evaluation import report

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report, "write_report", _killed)
        quick(max_steps=2)
    reason = damaged(tmp_path / "run" / "checkpoints" / "step-2")
    assert refused(quick, max_steps=2, resume=True).startswith(reason)
    assert refused(quick, max_steps=2, resume="latest-valid").endswith(f"holds no complete checkpoint:\n  {reason}")


def test_a_best_checkpoint_that_is_damaged_while_the_run_goes_on(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, reasons, where = {0: 9.0, 2: 1.0, 4: 4.0}, [], tmp_path / "run" / "checkpoints"

    def looked(_: Any, step: int) -> Any:
        reasons.extend([damaged(where / "step-2")] if step == 4 else [])
        return {name: {"loss": losses[step]} for name in ("seen", UNSEEN)}

    monkeypatch.setattr(Watcher, "look", looked)
    assert [refused(quick, eval_every=2, max_steps=4)] == reasons
    assert not {"run.json", "adapter_model.safetensors"} & set(os.listdir(tmp_path / "run"))


def test_what_a_crash_set_aside_is_gone_on_from(quick: Any, tmp_path: Path, straight: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, STEPS, signal.SIGTERM)
        quick(**EXACT)
    where = tmp_path / "run" / "checkpoints"
    os.rename(where / "step-22", where / "step-22.old")  # between the two renames of a save
    with counted() as taken:
        result = quick(resume=True, **EXACT)
        assert quick(resume=True, **EXACT) == result
    # the look that the signal cut off was taken and saved, in the place of the one set aside
    assert taken == [] and sorted(os.listdir(where)) == ["step-22"]
    weights = [folder / "adapter_model.safetensors" for folder in (result.folder, straight[0].folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


# -- the end ---------------------------------------------------------------------------------------------------------


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

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(card, "write_card", _killed)
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


@pytest.fixture
def stopped(quick: Any, tmp_path: Path) -> Path:
    """A run that was stopped in its last step: all that is left to do is to write what the folder needs."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 2, signal.SIGTERM)
        quick(max_steps=2)
    return tmp_path / "run"


class Crash(BaseException):
    """Nobody's to catch."""


def crash_at(patch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Raise Crash instead of fsync number `call`, counted from 1; returns the inodes that were synced."""
    fsync, synced = os.fsync, []

    def crashing(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if len(synced) == call:
            raise Crash
        fsync(descriptor)

    patch.setattr(os, "fsync", crashing)
    return synced


def refusal(run: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_target(str(run), precision="fp32")
    return str(caught.value)


def test_a_crash_anywhere_in_the_end_is_finished_by_resuming(
    quick: Any, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shutil.copytree(stopped, tmp_path / "whole")
    with monkeypatch.context() as patch:
        synced = crash_at(patch, 0)
        quick(max_steps=2, out=whole, resume=True)
        calls = len(synced)
    assert calls > 25
    unfinished = "no run.json: the run has not finished (go on with `instructrec tune --resume`)"
    for call in [*range(1, calls, 4), calls - 1, calls]:
        run = shutil.copytree(stopped, tmp_path / f"crash-{call}")
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_at(patch, call)
            quick(max_steps=2, out=run, resume=True)
        if call < calls:
            assert refusal(run) == f"{run}: {unfinished}", call
        with counted() as taken:
            quick(max_steps=2, out=run, resume=True)
        assert taken == [] and open_target(str(run), precision="fp32").run["training"]["best_step"] == 2
        assert sorted(os.listdir(run)) == sorted(os.listdir(whole)), call
        for name in ("adapter_model.safetensors", "adapter_config.json", "split.json", "examples.json"):
            assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_run_json_comes_when_all_else_is_on_disk(quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, missing, saves = os.replace, [], []
    synced = crash_at(monkeypatch, 0)

    def watched(source: str, target: str) -> None:
        if Path(target).name == "run.json":
            files = [path for path in tmp_path.joinpath("run").rglob("*") if path.is_file() and path.name[0] != "."]
            missing.extend(str(path) for path in files if path.stat().st_ino not in synced)
            assert len(files) > 15
        replace(source, target)

    def rename(source: Path, target: Path) -> None:
        if str(source).count("step-"):
            saves.append((tmp_path / "run" / "metrics.jsonl").stat().st_ino in synced)
            synced.clear()
        os_rename(source, target)

    os_rename = os.rename
    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(os, "rename", rename)
    quick(max_steps=4, eval_every=2)
    assert saves[:2] == [True, True]  # the log knows of every step that a checkpoint knows of
    assert [path for path in missing if "/checkpoints/step-" not in path] == []


def test_a_run_that_goes_on_is_not_finished_any_more(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "keep_only", lambda *_: None)
        quick(max_steps=4, eval_every=2)
    damaged(tmp_path / "run" / "checkpoints" / "step-4")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 3, signal.SIGTERM)
        quick(max_steps=4, eval_every=2, resume="latest-valid")
    assert "the run has not finished" in refusal(tmp_path / "run")
    assert quick(max_steps=4, eval_every=2, resume=True).steps == 4
    assert open_target(str(tmp_path / "run"), precision="fp32").run["training"]["best_step"] == 4


# -- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tail",
    [
        '{"step": 3, "loss": 6.9, "learning',
        '{"step": 3, "look": {"seen": {"loss": 7.1}',
        "\0" * 300,
        '\0\0{"step": 3}\n',
    ],
)
def test_a_log_that_a_crash_has_cut_off(quick: Any, tmp_path: Path, tail: str) -> None:
    straight = quick(out=tmp_path / "straight", max_steps=4, save_steps=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 2, signal.SIGTERM)
        quick(max_steps=4, save_steps=2)
    with open(tmp_path / "run" / "metrics.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"step": 3, "loss": 1.0}\n' + tail)
    folder = RunFolder(tmp_path / "run")
    assert [entry["step"] for entry in folder.entries()] == [0, 1, 2, 3]
    quick(max_steps=4, save_steps=2, resume=True)
    assert figures(tmp_path / "run") == figures(straight.folder)


def test_a_log_that_can_not_be_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics = Path("/dev/full")
    with pytest.raises(EnvironmentFault) as caught:
        folder.log({"step": 1})
    assert str(caught.value) == "/dev/full could not be written: No space left on device"


# -- one process at a time -------------------------------------------------------------------------------------------


def said(run: Callable[[], Any]) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        run()
    return str(caught.value)


def test_a_second_process_is_told_of_the_first(base: Path, table: Path, tmp_path: Path, capsys: Any) -> None:
    run, printed = tmp_path / "run", tmp_path / "printed"
    words = "--precision fp32 --threads 1 --no-tensorboard --epochs 2 --batch-rows 4 --save-steps 1".split()
    command = ["tune", str(table), "--model", str(base), "--out", str(run), *words]
    process = start(command, printed, slow=900)
    wait_for(lambda: checkpoint.checkpoints(run / "checkpoints") != [], process)
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "metrics.jsonl"}
    want = f"out: {run} is in use by process {process.pid}; wait for it to end, or choose another --out"
    for arguments in ([*command, "--resume"], ["evaluate", str(base), str(table), "--out", str(run)]):
        assert cli.main(arguments) == 3
        assert capsys.readouterr().err.splitlines()[-1] == want
    assert cli.main(command) == 2  # it holds more than a beginning
    assert before == {path: path.read_bytes() for path in before} and process.is_alive()
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert (run / LOCK).read_text(encoding="utf-8") == str(process.pid)  # a file, and nobody's lock
    assert cli.main([*command, "--resume"]) == 0 and not (run / LOCK).exists()


def test_two_that_start_at_once(tmp_path: Path) -> None:
    one, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    one.check(False), other.check(False)
    one.make(False)
    want = f"out: {tmp_path / 'run'} is in use by process {os.getpid()}; wait for it to end, or choose another --out"
    assert said(lambda: other.make(False)) == said(lambda: other.check(False)) == want
    other.close()  # what it does not hold it leaves alone
    assert said(lambda: other.make(False)) == want
    one.close()
    assert os.listdir(tmp_path / "run") == []
    other.make(False)
    assert os.listdir(tmp_path / "run") == [LOCK]
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    other.close()
    with pytest.raises(InputError, match="holds a finished run"):
        one.make(False)


def test_one_that_ended_just_before_the_lock_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Lock.take

    def late(lock: Lock) -> None:
        (tmp_path / "run.json").write_text("{}", encoding="utf-8")
        take(lock)

    monkeypatch.setattr(Lock, "take", late)
    with pytest.raises(InputError, match="holds a finished run"):
        RunFolder(tmp_path).check(False)


def test_a_lock_whose_file_goes_away_while_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, removed = fcntl.flock, []

    def removing(descriptor: int, how: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removing)
    Lock(tmp_path).take()
    assert removed and said(Lock(tmp_path).take).startswith(f"out: {tmp_path} is in use by process {os.getpid()};")


def test_where_files_can_not_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refusing)
    one, other = Lock(tmp_path), Lock(tmp_path)
    one.take(), other.take()
    one.release(), other.release()
    assert os.listdir(tmp_path) == []


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).symlink_to(tmp_path / "thesis.txt")
    assert said(Lock(run).take) == f"out: {run} can't be written to: Too many levels of symbolic links"
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_what_a_crash_leaves_of_files_is_no_content(quick: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torn = [LOCK, ".settings.json.ab_d3fgh", ".metrics.jsonl.abcdefgh"]
    for name in torn:
        (run / name).write_text("{", encoding="utf-8")
    quick(max_steps=2)
    assert not [name for name in os.listdir(run) if name.startswith(".")]
    other = tmp_path / "run2"
    other.mkdir()
    (other / ".settings.json.backup").write_text("{}", encoding="utf-8")  # six letters: not of our making
    assert refused(quick, out=other).startswith(f"out: {other} holds files already")
