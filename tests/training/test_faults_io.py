"""The N-th call of the disk fails, or the machine dies there, for N = 1, 2, 3 … until the work passes unharmed.

After each: what is complete can be found, is whole, and is the new or the old one, never nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import learning
import tiny
from failing_disk import IMAGES, Crash, Disk
from instructrec import files
from instructrec.errors import EnvironmentFault
from instructrec.models.methods import METHODS
from instructrec.training import checkpoint

NAMES = ["w"]
FAULTS = {
    "EIO": (errno.EIO, False),
    "ENOSPC": (errno.ENOSPC, False),
    "EMFILE": (errno.EMFILE, False),
    "EROFS from then on": (errno.EROFS, True),
    "EIO from then on": (errno.EIO, True),
}


def optimizer(mark: int) -> Any:
    """An AdamW of one parameter that has taken a step; what it holds can be told by `mark`."""
    weight = torch.nn.Parameter(torch.full((4, 3), float(mark)))
    made = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.full((4, 3), float(mark))
    made.step()
    return made


def save(folder: Path, step: int, mark: int | None = None) -> None:
    mark = step if mark is None else mark

    def write(target: Path) -> None:
        save_file({"w": torch.full((4, 3), float(mark))}, target / "adapter_model.safetensors")
        with open(target / "adapter_config.json", "w", encoding="utf-8") as handle:
            handle.write(f'{{"mark": {mark}}}')

    checkpoint.save(
        folder, step, write_weights=write, optimizer=optimizer(mark), names=NAMES, state={"mark": mark}
    )  # fmt: skip


def loaded(folder: Path) -> tuple[int, int]:
    """Step and mark of the newest checkpoint, whose parts have to belong together; (0, 0) if none.

    The others have to be whole too: one that is being deleted is not called a checkpoint any more.
    """
    found = checkpoint.checkpoints(folder)
    if not found:
        return 0, 0
    for path in found:
        checkpoint.verify(path)
    fresh = optimizer(99)
    state = checkpoint.restore(found[-1], fresh, NAMES)
    mark = state["mark"]
    want = optimizer(mark).state_dict()["state"][0]
    have = fresh.state_dict()["state"][0]
    assert want.keys() == have.keys() and all(torch.equal(want[key], have[key]) for key in want)
    assert torch.equal(load_file(found[-1] / "adapter_model.safetensors")["w"], torch.full((4, 3), float(mark)))
    return state["step"], mark


@dataclass(frozen=True)
class Work:
    """before: what the disk holds at first.  act: what is tried.  seen: what is found.  old, new: before and after."""

    before: Callable[[Path], None]
    act: Callable[[Path], None]
    seen: Callable[[Path], Any]
    old: Any
    new: Any
    floor: int  # calls that a whole run takes at least


def thinned(root: Path) -> None:
    save(root, 3)
    checkpoint.keep_only(root, {3, 1})


def text_in(root: Path, name: str) -> str | None:
    path = root / name
    return path.read_text(encoding="utf-8") if path.exists() else None


def set_aside(root: Path) -> None:
    """A crash between the two renames and another one before the last deletion."""
    save(root, 3, 0)
    (root / "step-3").rename(root / "kept")
    save(root, 3, 1)
    (root / "kept").rename(root / "step-3.old")
    shutil.copytree(root / "step-3.old", root / ".step-3.old.gone")


def tensor_free(root: Path) -> None:
    with files.new_directory(root / "models" / "m") as folder:
        for name in "ab":
            (folder / name).mkdir()
            (folder / name / "text").write_text("new")


def tensor_free_seen(root: Path) -> Any:
    found = [root / "models" / name for name in ("m", "m.old") if (root / "models" / name).exists()]
    return [path.read_text() for path in sorted(found[0].rglob("text"))] if found else None


WORKS = {
    "save and thin out": Work(
        lambda root: (save(root, 1), save(root, 2)), thinned, loaded, (2, 2), (3, 3), 60
    ),
    "save the first": Work(
        lambda root: None, lambda root: save(root / "run" / "checkpoints", 1),
        lambda root: loaded(root / "run" / "checkpoints"), (0, 0), (1, 1), 50,
    ),
    "save the same step again": Work(
        lambda root: save(root, 3, 0), lambda root: save(root, 3, 1), loaded, (3, 0), (3, 1), 60
    ),
    "save again after a crash while replacing": Work(
        set_aside, lambda root: save(root, 3, 2), loaded, (3, 1), (3, 2), 75
    ),
    "new directory": Work(
        lambda root: None, tensor_free, tensor_free_seen, None, ["new", "new"], 20
    ),
    "replace a text": Work(
        lambda root: files.write_text(root / "t", "old" * 100), lambda root: files.write_text(root / "t", "new" * 99),
        lambda root: text_in(root, "t"), "old" * 100, "new" * 99, 6,
    ),
    "write a text in new folders": Work(
        lambda root: None, lambda root: files.write_text(root / "a" / "b" / "t", "new"),
        lambda root: text_in(root, "a/b/t"), None, "new", 10,
    ),
    "place a copy": Work(
        lambda root: (files.write_text(root / "from", "new" * 99), files.write_text(root / "to", "old")),
        lambda root: files.place(root / "from", root / "to"),
        lambda root: text_in(root, "to"), "old", "new" * 99, 8,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def generators() -> Any:
    """`restore` sets the random generators."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def tried(work: Work, base: Path, **fault: Any) -> tuple[Disk, BaseException | None]:
    """`work` once more on a fresh copy of the disk at `base`/before, with a fault."""
    root = base / "disk"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(base / "before", root)
    disk = Disk(root, **fault)
    try:
        with disk.between():
            work.act(root)
    except (OSError, SafetensorError, EnvironmentFault, Crash) as error:
        return disk, error
    return disk, None


def prepared(name: str, tmp_path: Path) -> Work:
    work = WORKS[name]
    (tmp_path / "before").mkdir()
    work.before(tmp_path / "before")
    assert work.seen(tmp_path / "before") == work.old
    return work


def hidden(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.name.startswith(".")}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WORKS)
def test_a_call_that_fails_leaves_the_old_or_the_new(name: str, fault: str, tmp_path: Path) -> None:
    work, (number, ever) = prepared(name, tmp_path), FAULTS[fault]
    place, raised, root = 0, 0, tmp_path / "disk"
    while True:
        place += 1
        disk, error = tried(work, tmp_path, fail_at=place, error=number, ever=ever)
        disk.close()
        where = f"call {place}, {disk.calls[place - 1 : place]}"
        seen = work.seen(root)
        assert seen in (work.old, work.new), where
        assert not disk.twice, f"{where}: a failed fsync was tried again"
        if error is None:
            assert seen == work.new, where
            if not disk.failed:
                break
            continue
        raised += 1
        if isinstance(error, EnvironmentFault):
            assert os.strerror(number) in str(error), where
        if not ever and seen != work.new:  # what is half-made has been cleared away
            assert hidden(root) <= hidden(tmp_path / "before"), where
        if ever:  # on a disk that is well again, with all that could not be cleared away
            work.act(root)
            assert work.seen(root) == work.new, where
    # A folder that is there already may fail to be made; all other calls must be heard of.
    assert place - 1 - disk.calls.count("mkdir") <= raised and raised >= work.floor, (raised, len(disk.calls))


@pytest.mark.parametrize("name", WORKS)
def test_a_crash_at_a_call_leaves_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    work = prepared(name, tmp_path)
    place, images = 0, set()
    while True:
        place += 1
        disk, error = tried(work, tmp_path, fail_at=place)
        for kind in IMAGES:
            left = work.seen(disk.image(tmp_path / "after", kind))
            images.add((kind, left == work.new if work.new != work.old else None))
            if error is None:
                assert left == work.new, f"all done, {kind}"
            else:
                assert isinstance(error, Crash)
                assert left in (work.old, work.new), f"call {place}, {disk.calls[-1]}, {kind}"
        disk.close()
        if error is None:
            break
    assert len(disk.calls) == place - 1 >= work.floor, len(disk.calls)
    assert images == {(kind, new) for kind in IMAGES for new in (False, True)}  # each was seen before and after


@pytest.mark.parametrize("method", METHODS)
def test_a_crash_while_a_real_model_is_saved(method: str, tmp_path: Path) -> None:
    """PEFT and transformers write weights and settings by themselves: what they leave is synced before the rename."""
    chosen = METHODS[method]
    model = chosen.attach(tiny.model("gpt2"), learning.options_of(chosen), 0)
    run = learning.training(model, learning.rows([9, 12], 290), learning.plan(epochs=4.0))

    def write(root: Path, step: int) -> None:
        run._step(step)
        checkpoint.save(
            root, step, write_weights=lambda target: chosen.save(model, target, "tiny"),
            optimizer=run.optimizer.optimizer, names=run.names, state={"mark": step},
        )  # fmt: skip
        checkpoint.keep_only(root, {step})

    def seen(root: Path) -> int:
        found = checkpoint.checkpoints(root)[-1]
        checkpoint.verify(found)
        chosen.load(tiny.model("gpt2"), found)
        return int(checkpoint.restore(found, run.optimizer.optimizer, run.names)["step"])

    (tmp_path / "before").mkdir()
    write(tmp_path / "before", 1)
    work = Work(lambda root: None, lambda root: write(root, 2), seen, 1, 2, 0)
    whole, error = tried(work, tmp_path)
    whole.close()
    assert error is None and whole.calls.count("serialize") >= 2 and whole.calls.count("fsync") > 10
    late = [place + 1 for place, name in enumerate(whole.calls) if name in ("serialize", "fsync", "rename", "rmdir")]
    found = set()
    for place in late:
        disk, error = tried(work, tmp_path, fail_at=place)
        assert isinstance(error, Crash)
        for kind in ("kept", "lost", "empty"):
            found.add(seen(disk.image(tmp_path / "after", kind)))
        disk.close()
    assert found == {1, 2}


def told(folder: Path, step: int, number: int, call: str) -> str:
    """What a save says when the first `call` of it fails with this errno."""
    for place in range(1, 200):
        disk = Disk(folder.parent, fail_at=place, error=number)
        try:
            with disk.between():
                save(folder, step)
        except EnvironmentFault as error:
            assert error.exit_code == 3
            if disk.calls[-1:] and disk.calls[place - 1] == call:
                return str(error)
        finally:
            disk.close()
        shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    raise AssertionError(f"no {call}")


@pytest.mark.parametrize("call", ["open", "write", "serialize", "fsync", "rename"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EIO, "Input/output error"),
        (errno.EROFS, "Read-only file system"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_the_disk_in_the_way_is_said_in_one_line(call: str, number: int, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "checkpoints"
    folder.mkdir(parents=True)
    what = f"checkpoint: {folder / 'step-1'} could not be written: {words} (needs about 148 bytes)"
    assert told(folder, 1, number, call) == f"{what}; there is no complete one before it"
    save(folder, 1)
    what = f"checkpoint: {folder / 'step-2'} could not be written: {words} (needs about 148 bytes)"
    assert told(folder, 2, number, call) == f"{what}; the newest complete one is step-1"


def test_what_can_not_be_deleted_is_said(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path / "c", step)
    disk = Disk(tmp_path, fail_at=2, error=errno.EROFS, ever=True)
    with pytest.raises(EnvironmentFault) as caught, disk.between():
        checkpoint.keep_only(tmp_path / "c", {2})
    disk.close()
    text = f"checkpoint: what is no longer needed in {tmp_path / 'c'} could not be deleted: Read-only file system"
    assert str(caught.value) == text
    assert loaded(tmp_path / "c") == (2, 2)


def test_what_can_not_be_read_is_said_and_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    said = set()
    for place in range(1, 200):
        disk = Disk(tmp_path, fail_at=place, error=errno.EIO)
        with disk.between():
            try:
                checkpoint.verify(tmp_path / "step-2")
            except EnvironmentFault as error:
                said.add(str(error))
        disk.close()
        if not disk.failed:
            break
    assert said == {f"checkpoint: {tmp_path / 'step-2'} could not be read: Input/output error"} and place > 10
    disk = Disk(tmp_path, fail_at=3, error=errno.EIO)
    with disk.between():
        found, reasons = checkpoint.newest_valid(tmp_path)
    disk.close()
    assert (found, reasons) == (tmp_path / "step-1", list(said))


def test_errors_that_are_none_of_the_disk_s_stay_what_they_are(tmp_path: Path) -> None:
    for error in (ValueError("a bug"), SafetensorError("a header that is not JSON"), OSError("no number")):
        with pytest.raises(type(error)) as caught, files.disk_faults("x"):
            raise error
        assert caught.value is error


def test_the_first_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> Callable[..., Any]:
        def call(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(os, "replace", fails(errno.ENOSPC))
    monkeypatch.setattr(os, "unlink", fails(errno.EROFS))
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "t", "new")


def test_a_file_system_without_fsync_of_folders_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = os.fsync, []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, 1)
    assert loaded(tmp_path) == (1, 1) and len(refused) > 2


def test_the_disk_of_these_tests_loses_what_was_not_synced(tmp_path: Path) -> None:
    """The yardstick itself: without fsync, a file is empty or absent after a crash."""
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    with disk.between():
        for name in ("synced", "named", "plain"):
            with open(tmp_path / "disk" / name, "wb") as handle:
                handle.write(b"four")
                handle.flush()
                if name == "synced":
                    os.fsync(handle.fileno())
            if name != "plain":
                files.sync(tmp_path / "disk")
        (tmp_path / "disk" / "synced").unlink()
    found = {
        kind: {path.name: path.read_bytes() for path in disk.image(tmp_path / "after", kind).iterdir()}
        for kind in ("kept", "lost", "empty", "half")
    }
    disk.close()
    assert found == {
        "kept": {"named": b"four", "plain": b"four"},
        "lost": {"named": b"", "synced": b"four"},
        "empty": {"named": b"", "plain": b""},
        "half": {"named": b"fo", "plain": b"fo"},
    }
    assert disk.calls == ["open", "write", "fsync", "open", "fsync", "open", "write", "open", "fsync", "open", "write", "unlink"]  # fmt: skip
